"""Modes of the files and folders that the server makes, whatever the umask: prompts and pictures are in them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

FOLDER_MODE, FILE_MODE = 0o700, 0o600
"""For the server's user alone."""
Readers = Literal["user", "group", "all"]
READABLE: dict[Readers, int] = {"user": 0, "group": 0o040, "all": 0o044}
ENTERABLE: dict[Readers, int] = {"user": 0, "group": 0o050, "all": 0o055}


def make_folder(folder: Path, readers: Readers = "user") -> None:
    """Make a folder and those above it that are not there; one that is there keeps its mode.

    Raises:
        OSError: it cannot be made.
    """
    if folder.is_dir():
        return
    make_folder(folder.parent, readers)
    try:
        folder.mkdir(FOLDER_MODE)
    except FileExistsError:
        if not folder.is_dir():  # else made by another process meanwhile
            raise
        return
    folder.chmod(FOLDER_MODE | ENTERABLE[readers])
