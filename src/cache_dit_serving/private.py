"""Modes of the server's files and folders, independent of the umask, because these hold prompts and images."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

FOLDER_MODE, FILE_MODE = 0o700, 0o600
"""Modes that admit only the server's user."""
Readers = Literal["user", "group", "all"]
"""Users of the machine that may read the outputs."""
READABLE: dict[Readers, int] = {"user": 0, "group": 0o040, "all": 0o044}
ENTERABLE: dict[Readers, int] = {"user": 0, "group": 0o050, "all": 0o055}


def make_folder(folder: Path, readers: Readers = "user") -> None:
    """Make a folder and its missing parents. An existing folder keeps its mode.

    Raises:
        OSError: the folder cannot be made.
    """
    if folder.is_dir():
        return
    make_folder(folder.parent, readers)
    try:
        folder.mkdir(FOLDER_MODE)
    except FileExistsError:
        if not folder.is_dir():  # otherwise another process has just made it
            raise
        return
    folder.chmod(FOLDER_MODE | ENTERABLE[readers])
