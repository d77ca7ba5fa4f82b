"""State that the workers of one server share, in the server's own folder. It lives as long as the server does."""

from __future__ import annotations

import logging
import math
import os
import sqlite3
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import psutil

from cache_dit_serving.jobs.metrics import METRICS_FOLDER

logger = logging.getLogger(__name__)

T = TypeVar("T")

STEPS = struct.Struct("<QQ")
"""Denoising steps done, and those of them that reused blocks."""
FULL = math.inf
"""Requests left in a bucket that was never taken from; it holds no more than its size."""
ROUNDING = 1e-6
"""Part of a request that may be missing from a whole one."""
WAIT_S = 0.2
"""Seconds that a worker waits for another one's write."""
TABLES = """
CREATE TABLE IF NOT EXISTS buckets (caller TEXT PRIMARY KEY, left REAL NOT NULL, at REAL NOT NULL);
CREATE TABLE IF NOT EXISTS live (id INTEGER PRIMARY KEY, caller TEXT NOT NULL, worker INTEGER NOT NULL);
"""


def server_folder() -> Path | None:
    """Return the folder of this server, in which its metrics have theirs; None where BentoML gave it none."""
    metrics = os.environ.get(METRICS_FOLDER)
    return Path(metrics).parent if metrics else None


def shared_folder(workers: int) -> Path | None:
    """Return the folder of a server of several workers; None where it has one, or no folder."""
    return server_folder() if workers > 1 else None


def refill(left: float, seconds: float, per_minute: float) -> tuple[float, float]:
    """Take one request from a bucket that fills evenly and holds a minute's, at least one.

    Args:
        left: requests that it held `seconds` ago; FULL for a caller's first.
        seconds: those below 0, of workers that write in another order than they read the clock, count as 0.

    Returns:
        Requests that it holds then, and the seconds until there is one where there is none.
    """
    held = min(max(1.0, per_minute), left + max(0.0, seconds) * per_minute / 60)
    # Sums of floats: a caller that waited as long as it was told to has one, be it 0.9999999999.
    return (max(0.0, held - 1), 0.0) if held >= 1 - ROUNDING else (held, (1 - held) * 60 / per_minute)


class CallerCounts:
    """Requests a minute, and live generations, of each caller at all workers. For any thread.

    A database that does not answer counts no caller: callers are served, and the log has it.
    """

    def __init__(self, folder: Path) -> None:
        self._lock = threading.Lock()
        self._database = sqlite3.connect(
            folder / "callers.sqlite3", timeout=WAIT_S, isolation_level=None, check_same_thread=False
        )
        # Nothing of it outlives the server.
        self._database.executescript("PRAGMA journal_mode=MEMORY; PRAGMA synchronous=OFF;" + TABLES)

    def take(self, caller: str, per_minute: float, now: float) -> float:
        """Count a request; return the seconds until the caller may send one, 0 where it may now.

        Args:
            now: seconds of a clock that all workers share.
        """

        def take(database: sqlite3.Connection) -> float:
            row = database.execute("SELECT left, at FROM buckets WHERE caller = ?", (caller,)).fetchone()
            left, at = row or (FULL, now)
            left, wait_s = refill(left, now - at, per_minute)
            database.execute("REPLACE INTO buckets VALUES (?, ?, ?)", (caller, left, now))
            return wait_s

        return self._write(take, 0.0)

    def begin(self, caller: str, most: int | None) -> tuple[int | None, int]:
        """Count a generation that is admitted, unless its caller has `most` already.

        Returns:
            The number by which :meth:`end` knows it, None where it is not counted; and those that the caller had.
        """

        def begin(database: sqlite3.Connection) -> tuple[int | None, int]:
            live = _live(database, caller)
            if most is not None and live >= most:
                return None, live
            values = (caller, os.getpid())
            return database.execute("INSERT INTO live (caller, worker) VALUES (?, ?)", values).lastrowid, live

        uncounted: tuple[int | None, int] = (None, 0)
        return self._write(begin, uncounted)

    def end(self, number: int) -> None:
        """Count a generation no more."""
        self._write(lambda database: database.execute("DELETE FROM live WHERE id = ?", (number,)).rowcount, 0)

    def _write(self, what: Callable[[sqlite3.Connection], T], otherwise: T) -> T:
        """Do something in one transaction; `otherwise` is the result where the database does not answer."""
        try:
            with self._lock, self._database:
                self._database.execute("BEGIN IMMEDIATE")
                return what(self._database)
        except sqlite3.Error as error:
            logger.warning("the callers of this server's workers are not counted together: %s", error)
            return otherwise


def _live(database: sqlite3.Connection, caller: str) -> int:
    """The caller's live generations; those of workers that have ended are forgotten."""
    for (worker,) in database.execute("SELECT DISTINCT worker FROM live WHERE caller = ?", (caller,)).fetchall():
        if not psutil.pid_exists(worker):
            database.execute("DELETE FROM live WHERE worker = ?", (worker,))
    return int(database.execute("SELECT count(*) FROM live WHERE caller = ?", (caller,)).fetchone()[0])


class JobProgress:
    """The progress of jobs at all workers: a small file for each that runs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "progress"
        self._folder.mkdir(exist_ok=True)

    def write(self, job: str, step: int, cached_steps: int) -> None:
        """Write the progress of a job of this worker."""
        with suppress(OSError):  # a follower sees the next one
            (self._folder / job).write_bytes(STEPS.pack(step, cached_steps))

    def read(self, job: str) -> tuple[int, int] | None:
        """Return the steps and the cached steps of a job; None: no worker of this server runs it."""
        try:
            content = (self._folder / job).read_bytes()
        except OSError:
            return None
        return STEPS.unpack(content) if len(content) == STEPS.size else None

    def remove(self, job: str) -> None:
        """Forget a job that has ended."""
        (self._folder / job).unlink(missing_ok=True)
