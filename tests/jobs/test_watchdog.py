"""The watch over the pipeline's thread: a stall is found, and steps cost that thread next to nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cache_dit_serving.jobs.watchdog import Watchdog
from tests.support.waiting import wait_until


@contextmanager
def started(max_step_s: float) -> Iterator[tuple[Watchdog, threading.Thread]]:
    before = set(threading.enumerate())
    watchdog = Watchdog(max_step_s)
    watchdog.start()
    (thread,) = set(threading.enumerate()) - before
    try:
        yield watchdog, thread
    finally:
        watchdog.close()
        thread.join(60)
        assert not thread.is_alive()


def waits(thread: threading.Thread) -> int:
    """Return how often a thread has waited for something so far."""
    status = Path(f"/proc/self/task/{thread.native_id}/status").read_text(encoding="ascii")
    return int(status.partition("\nvoluntary_ctxt_switches:")[2].split()[0])


def stands_still(thread: threading.Thread) -> bool:
    before = waits(thread)
    time.sleep(0.05)
    return waits(thread) == before


def test_steps_do_not_wake_the_watchdogs_thread() -> None:
    with started(max_step_s=60) as (watchdog, thread), watchdog.watching("one"):
        wait_until(lambda: stands_still(thread))  # until its own wait begins, it waits for the interpreter's lock
        before = waits(thread)
        for _ in range(50):
            watchdog.sign()
            time.sleep(0.001)  # frees the interpreter's lock, as a torch operation does
        assert waits(thread) - before <= 5


def test_a_stall_is_found_in_work_that_begins_while_the_watch_of_the_last_one_runs_on() -> None:
    with started(max_step_s=0.5) as (watchdog, _):
        for request in ("one", "two"):
            with watchdog.watching(request):
                watchdog.sign()
        with watchdog.watching("three"):
            began = time.monotonic()
            wait_until(lambda: watchdog.stalled)
            assert time.monotonic() - began >= 0.25
            watchdog.sign()
            assert not watchdog.stalled
            wait_until(lambda: watchdog.stalled)
        assert not watchdog.stalled


def test_a_stall_is_found_after_the_watchdog_was_idle() -> None:
    with started(max_step_s=0.05) as (watchdog, _):
        with watchdog.watching("one"):
            pass
        time.sleep(0.2)  # longer than the watch of that work
        assert not watchdog.stalled
        with watchdog.watching("two"):
            wait_until(lambda: watchdog.stalled)
