"""Resampling of a video to a constant frame rate. The rate is measured from frame times; the claimed one is ignored."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from typing import TypeVar

T = TypeVar("T")
MOST_FPS = 120
"""Maximum frame rate, frames per second. Frames of a faster video, such as slow motion, are dropped."""
NEAR = Fraction(3, 2)
"""Maximum ratio of a usual interval to the median interval, or its inverse. Other intervals are pauses."""


def usual_interval(times: Sequence[Fraction]) -> Fraction | None:
    """Return the usual interval between frames, seconds; None for fewer than two distinct times.

    It is the mean of the intervals near the median. A mean is needed because times in whole milliseconds alternate:
    33, 33, 34 ms at 30 frames per second.
    """
    ordered = sorted(set(times))
    intervals = [later - earlier for earlier, later in itertools.pairwise(ordered)]
    if not intervals:
        return None
    middle = statistics.median_low(intervals)
    near = [interval for interval in intervals if middle / NEAR <= interval <= middle * NEAR]
    return sum(near, Fraction(0)) / len(near)


def at_even_times(frames: Iterable[tuple[Fraction, T]], interval: Fraction) -> Iterator[T]:
    """Yield frames at a constant rate of at most `MOST_FPS`: the nearest frame, or the last one during a pause.

    Args:
        frames: (time in seconds, frame) in order.
        interval: usual interval of the frames, seconds; see :func:`usual_interval`.
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
