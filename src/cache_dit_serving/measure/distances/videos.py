"""Distances between two videos beyond those of their frames: flicker."""

from __future__ import annotations

import math
import statistics

import numpy as np

from cache_dit_serving.measure.distances.pixels import floats, same_shape
from cache_dit_serving.media.values import Array


def flicker(video: Array, reference: Array) -> float:
    """Return the flicker that a video has and its reference has not: 0 for equal motion, 2 at most.

    The change of each value from a frame to the next is taken from the same change of the reference: root mean square
    over a frame's pixels and channels, mean over the pairs of frames; 0 for a single frame. This is dtSSD of Erofeev et
    al. 2015 (doi:10.5244/C.29.99), per value. An error that stays still in time adds nothing to it.

    Args:
        video: (frames, height, width, 3), the same shape as `reference`.

    Raises:
        ValueError: the shapes differ.
    """
    same_shape(video, reference)
    # The change of the differences is the difference of the changes. Two frames at a time: a video may be gigabytes.
    before: Array | None = None
    changes: list[float] = []
    for ours, theirs in zip(video, reference, strict=True):
        gap = floats(ours).astype(np.float64) - floats(theirs)
        if before is not None:
            changes.append(math.sqrt(float(np.mean((gap - before) ** 2))))
        before = gap
    return statistics.fmean(changes) if changes else 0.0
