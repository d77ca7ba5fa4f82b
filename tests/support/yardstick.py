"""A fixed computation, timed all through a run: CPU seconds of two machines, or of two hours of one, compare by it."""

from __future__ import annotations

import statistics
import threading
import time

import numpy as np

PAUSE_S = 5.0
"""Between two computations: they take about 1 % of a core."""


class Yardstick:
    """Times the computation in a thread until the run ends."""

    def __init__(self) -> None:
        self._taken = [computation_s()]
        threading.Thread(target=self._measure, daemon=True, name="yardstick").start()

    def sentence(self) -> str:
        """Milliseconds of CPU of the computation, at best, in the median and at worst, for the head of a table."""
        best, median, worst = (1000 * pick(self._taken) for pick in (min, statistics.median, max))
        return (
            f"A fixed computation took {median:.0f} ms of CPU in the median of {len(self._taken)} times, "
            f"{best:.0f} at best and {worst:.0f} at worst: CPU seconds of two runs compare by it."
        )

    def _measure(self) -> None:
        while True:
            time.sleep(PAUSE_S)
            self._taken.append(computation_s())


def computation_s() -> float:
    """CPU seconds of Python's own work and of multiplications that fit the caches, about half each."""
    matrix = np.full((128, 128), 1 / 128, np.float32)
    began = time.thread_time()
    named = {}
    for number in range(60_000):
        named[number % 1000] = str(number)
    for _ in range(400):
        matrix = matrix @ matrix
    return time.thread_time() - began
