"""Temporary folders of the processes of one server, which do not outlive it however it ends."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

ABOVE = Path("/tmp")
"""Folder for the ones whose path would be too long for a Unix socket in them."""
LONGEST_PATH = 90
"""Characters of a folder whose sockets still have a path that Unix allows, 103 on macOS."""


class HeldFolder:
    """A folder that only this user may enter.

    Each process that uses it holds a shared lock on it, which the system frees however the process ends. So a folder
    without a lock is left over, and the next one of its kind removes it.
    """

    def __init__(self, kind: str) -> None:
        """
        Args:
            kind: part of the folder's name.

        Raises:
            OSError: the system's folder for temporary files cannot be written to.
        """
        prefix = prefix_of(kind)
        for above in {Path(tempfile.gettempdir()), ABOVE}:
            for left in above.glob(f"{prefix}*"):
                _remove_unheld(left)
        while True:
            folder = Path(tempfile.mkdtemp(prefix=prefix))  # mode 0700
            if len(str(folder)) > LONGEST_PATH:
                folder.rmdir()
                folder = Path(tempfile.mkdtemp(prefix=prefix, dir=ABOVE))
            with suppress(FileNotFoundError):  # another start has removed it before it was held
                self._lock = hold(folder)
                folder.stat()
                break
        self.path = folder
        self._owner = os.getpid()

    def remove(self) -> None:
        """Remove it with all that is in it; nothing in a process that was forked from its owner."""
        if os.getpid() != self._owner or self._lock < 0:
            return
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)
        self._lock = -1


def prefix_of(kind: str) -> str:
    """Return how the names of a kind's folders begin."""
    return f"cache-dit-serving-{kind}-"


def hold(folder: Path) -> int:
    """Keep a folder for as long as this process lives or the descriptor is open; programs that it starts do not."""
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    fcntl.flock(lock, fcntl.LOCK_SH)
    return lock


def _remove_unheld(folder: Path) -> None:
    with suppress(OSError):  # no folder, another user's, or removed by its own server meanwhile
        if folder.lstat().st_uid != os.geteuid():
            return
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
        finally:
            os.close(lock)
