"""Files and folders that the server's user alone may read, whatever the umask: prompts and pictures are in them."""

from __future__ import annotations

from pathlib import Path

FOLDER_MODE, FILE_MODE = 0o700, 0o600


def make_folder(folder: Path) -> None:
    """Make a folder and those above it that are not there; one that is there keeps its mode.

    Raises:
        OSError: it cannot be made.
    """
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(FOLDER_MODE, exist_ok=True)
