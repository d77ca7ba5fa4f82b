"""The beat of a server: a thread and a connection that do nothing else, so that nothing can hold it up."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from cache_dit_serving.jobs.store.exchanged import summary
from cache_dit_serving.jobs.store.leases import Leases, Silent

if TYPE_CHECKING:
    from cache_dit_serving.jobs.store.store import JobStore

logger = logging.getLogger(__name__)

BEAT_S = 1.0
"""Seconds between two beats of a server in the database."""
OVERDUE_S = 5.0
"""Seconds without a beat after which the database counts as away."""


class Heart:
    """Writes the beats of a server into the database, and reads those of the others."""

    def __init__(self, owner: str, lease_s: float, store: Callable[[], JobStore | None]) -> None:
        """
        Args:
            owner: the server.
            store: the database as it is open now.
        """
        self._owner = owner
        self._store = store
        self._leases = Leases(lease_s)
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._failed = ""
        self._last = -math.inf
        """Monotonic time of the latest beat."""
        self._thread = threading.Thread(target=self._run, name="jobs-heart", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the beat, and the server for the others."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        if (store := self._store()) is None:
            return
        from sqlalchemy.exc import SQLAlchemyError

        try:
            store.leave(self._owner)
        except SQLAlchemyError as error:
            logger.warning("the database of jobs is not told that this server ends: %s", summary(error))

    @property
    def beating(self) -> bool:
        """True while the database takes this server's beats."""
        return not self._failed and time.monotonic() - self._last < OVERDUE_S

    def silent(self) -> Silent:
        """Servers that count as dead."""
        with self._lock:
            return self._leases.silent()

    def on_time_s(self) -> float:
        """Seconds for which this server's own beats came on time."""
        with self._lock:
            return self._leases.on_time_s()

    def _run(self) -> None:
        while True:
            self._beat()
            if self._stopping.wait(BEAT_S):
                return

    def _beat(self) -> None:
        if (store := self._store()) is None:
            return
        from sqlalchemy.exc import SQLAlchemyError  # as the open database has imported it

        try:
            beats = store.beat(self._owner)
        except SQLAlchemyError as error:
            if (failed := summary(error)) != self._failed:
                logger.warning("the database of jobs does not take this server's beat: %s", failed)
            self._failed = failed
            return
        except Exception:
            logger.exception("this server's beat failed")
            return
        self._failed, self._last = "", time.monotonic()
        with self._lock:
            self._leases.hear(beats, time.monotonic())
