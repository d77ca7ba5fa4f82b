"""A watch over the pipeline's thread. Nothing can end a thread that stands still: a new process must take over."""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cache_dit_serving.jobs import metrics
from cache_dit_serving.logs import noted

logger = logging.getLogger(__name__)


class Watchdog:
    """Measures how long the pipeline's thread takes from one sign of life to the next while it works."""

    def __init__(self, max_step_s: float, on_change: Callable[[], None] = lambda: None) -> None:
        """
        Args:
            max_step_s: seconds without a sign of life after which the thread counts as stalled.
            on_change: called when the thread stalls and when it goes on again.
        """
        self.max_step_s = max_step_s
        self.stalled = False
        """True while the thread stands still."""
        self._on_change = on_change
        self._changed = threading.Condition()
        self._since: float | None = None
        """Time of the last sign of life, monotonic seconds; None without work."""
        self._sleeping = False
        """True while the watchdog's thread waits for work without a limit of time."""
        self._request = ""
        self._worker: int | None = None
        self._closed = False

    def start(self) -> None:
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def close(self) -> None:
        """End the watchdog's thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    @contextmanager
    def watching(self, request: str = "") -> Iterator[None]:
        """Watch the calling thread meanwhile.

        Args:
            request: id of the request that it works for.
        """
        with self._changed:
            self._request, self._worker = request, threading.get_ident()
        self.sign()
        try:
            yield
        finally:
            self.sign(last=True)

    def sign(self, *, last: bool = False) -> None:
        """Take a sign of life; the last one ends the work.

        It wakes the watchdog's thread only if that waits for work. To wake it at each step would make the pipeline's
        thread wait for the interpreter's lock, which the woken thread takes as soon as a torch operation releases it.
        """
        with self._changed:
            self._since = None if last else time.monotonic()
            recovered, self.stalled = self.stalled, False
            if self._sleeping and not last:
                self._sleeping = False
                self._changed.notify()
        if recovered:
            logger.warning("the pipeline goes on again")
            self._on_change()

    def _watch(self) -> None:
        while True:
            with self._changed:
                if self._closed:
                    return
                if self._since is None or self.stalled:
                    self._sleeping = True
                    self._changed.wait()
                    continue
                left_s = self._since + self.max_step_s - time.monotonic()
                if left_s > 0:
                    self._changed.wait(left_s)
                    continue
                self.stalled = True
                request, worker = self._request, self._worker
            metrics.STALLS.inc()
            with noted(request_id=request):
                logger.error(
                    "the pipeline stands still for %g s: /livez fails, and this process must be started anew",
                    self.max_step_s,
                    extra={"stack": _stack(worker)},
                )
            self._on_change()


def _stack(thread: int | None) -> str:
    """Return the stack of a thread."""
    frame = sys._current_frames().get(thread or 0)
    return "".join(traceback.format_stack(frame)).rstrip() if frame else ""
