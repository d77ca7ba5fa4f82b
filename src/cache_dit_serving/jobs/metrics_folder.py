"""The folder in which the processes of one server keep their metrics, and its end.

BentoML 1.4.39 has one folder below BENTOML_HOME for all servers, which each of them empties as it starts: the metrics
of one that runs are lost for good. Each process of a server holds a shared lock on the server's folder, which the
system frees however the process ends, so a folder that nobody holds is left over.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

PREFIX = "cache-dit-serving-metrics-"


def own_folder() -> Path:
    """Make a folder that only this user may read, held by this process and removed at its end. Those that a killed
    server left are removed now.

    Raises:
        OSError: the system's folder for temporary files cannot be written to.
    """
    for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        _remove_unheld(left)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        with suppress(FileNotFoundError):  # another start has removed it before it was held
            hold(folder)
            folder.stat()
            break
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def hold(folder: Path) -> None:
    """Keep a folder for as long as this process lives; programs that it starts do not."""
    fcntl.flock(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW), fcntl.LOCK_SH)


def hold_folder_of_server() -> None:
    """Keep the folder that BentoML's supervisor gave this worker; nothing where it gave none."""
    if folder := os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        hold(Path(folder))


def _remove_unheld(folder: Path) -> None:
    with suppress(OSError):  # no folder, another user's, or removed by its own server meanwhile
        if folder.lstat().st_uid != os.geteuid():
            return
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
        finally:
            os.close(handle)
