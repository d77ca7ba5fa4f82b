"""Several workers of one forked server, as BentoML's supervisor keeps them."""

from __future__ import annotations

import os
import signal
import sys


def supervise(workers: int) -> int:
    """Fork workers, and another one for each that is killed. Return the number of the worker in each of them, from 1.

    SIGTERM ends all of them; then this process, which runs no second thread, exits with status 0.
    """
    from cache_dit_serving.supervisor import ended  # after the warm process has set the folder of metrics

    numbers: dict[int, int] = {}
    """By process."""
    ending = False

    def end(*_: object) -> None:
        nonlocal ending
        ending = True
        for pid in numbers:
            os.kill(pid, signal.SIGTERM)

    signal.signal(signal.SIGTERM, end)
    while True:
        missing = set() if ending else set(range(1, workers + 1)) - set(numbers.values())
        for number in sorted(missing):
            # SIGTERM waits until the worker is known.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            pid = os.fork()
            if pid == 0:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
            else:
                numbers[pid] = number
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
            if pid == 0:
                return number
        if not numbers:
            sys.exit(0)
        pid, status = os.wait()
        del numbers[pid]
        if not ending:
            said = f"a worker is gone: {ended(pid, os.waitstatus_to_exitcode(status))}; another one starts"
            print(said, file=sys.stderr, flush=True)
