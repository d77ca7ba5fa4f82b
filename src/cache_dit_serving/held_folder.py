"""Temporary folders of one server's processes. They are removed however the server ends."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

ABOVE = Path("/tmp")
"""Parent of folders whose path would otherwise be too long for a Unix socket inside them."""
LONGEST_PATH = 90
"""Maximum length of a folder's path, characters. A socket's whole path may have 103 on macOS."""


class HeldFolder:
    """A temporary folder that only this user may enter.

    Each process that uses it holds a shared lock on it. The system releases the lock however the process ends.
    Therefore a folder without a lock is left over, and the next start of the same kind removes it.
    """

    def __init__(self, kind: str) -> None:
        """
        Args:
            kind: part of the folder's name.

        Raises:
            OSError: the system's temporary folder is not writable.
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
            with suppress(FileNotFoundError):  # another start removed it before it was locked
                self._lock = hold(folder)
                folder.stat()
                break
        self.path = folder
        self._owner = os.getpid()

    def remove(self) -> None:
        """Remove the folder with its contents. Does nothing in a process forked from the owner."""
        if os.getpid() != self._owner or self._lock < 0:
            return
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock)
        self._lock = -1


def prefix_of(kind: str) -> str:
    """Return the name prefix of a kind's folders."""
    return f"cache-dit-serving-{kind}-"


def hold(folder: Path) -> int:
    """Lock a folder until this process ends or closes the returned descriptor. Programs it starts do not inherit it."""
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    fcntl.flock(lock, fcntl.LOCK_SH)
    return lock


def _remove_unheld(folder: Path) -> None:
    with suppress(OSError):  # not a folder, another user's, in use, or just removed by its own server
        if folder.lstat().st_uid != os.geteuid():
            return
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
        finally:
            os.close(lock)
