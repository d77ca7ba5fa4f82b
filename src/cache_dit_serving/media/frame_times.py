"""The rate of a video by the times of its frames, and its frames at that rate; what a file claims is passed over."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from typing import TypeVar

T = TypeVar("T")
MOST_FPS = 120
"""Greatest frame rate, frames a second. Of a faster video, such as a phone's slow motion, some frames are left out."""
NEAR = Fraction(3, 2)
"""Intervals up to this many times longer or shorter than the median one are of the usual kind, and not a pause."""


def usual_interval(times: Sequence[Fraction]) -> Fraction | None:
    """Seconds from one frame to the next, but for pauses; None: there are no two frames.

    The mean of the intervals that are near the median: times in whole milliseconds are 33, 33 and 34 of them apart.
    """
    ordered = sorted(set(times))
    intervals = [later - earlier for earlier, later in itertools.pairwise(ordered)]
    if not intervals:
        return None
    middle = statistics.median_low(intervals)
    near = [interval for interval in intervals if middle / NEAR <= interval <= middle * NEAR]
    return sum(near, Fraction(0)) / len(near)


def at_even_times(frames: Iterable[tuple[Fraction, T]], interval: Fraction) -> Iterator[T]:
    """Frames at a constant rate: at each of its times the one that is nearest, or in a pause the one before it.

    Args:
        frames: each with its time, seconds, in order.
        interval: seconds from one frame to the next in them, as :func:`usual_interval`.
    """
    step = max(interval, Fraction(1, MOST_FPS))
    start = last = Fraction(0)
    held: list[T] = []
    due = 0
    for time, frame in frames:
        if not held:
            start = time
        while held and start + due * step + interval / 2 < time:
            yield held[0]
            due += 1
        held, last = [frame], time
    while held and start + due * step <= last + interval / 2:
        yield held[0]
        due += 1
