"""Speeds that replace those which miss their floors."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from cache_dit_serving.caching.speed_settings import Speed
from cache_dit_serving.caching.speeds import SPEEDS
from cache_dit_serving.measure.evidence.floor_watch import Status

LOSSLESS: Speed = SPEEDS[0]
"""Speed without a cache, which has no floor to miss and is always allowed."""


def lowered(allowed: Collection[Speed], statuses: Mapping[Speed, Status] | Mapping[str, Status]) -> dict[Speed, Speed]:
    """Return the speed that serves each allowed one: itself, or the next less approximate one that is not missed.

    Args:
        allowed: speeds that requests may name, as `SpeedLadder.allowed`.
        statuses: status of the speeds that are watched; one that is left out is unknown.
    """
    serving: dict[Speed, Speed] = {}
    best = LOSSLESS
    for speed in SPEEDS:
        if speed not in allowed:
            continue
        if statuses.get(speed) != "missed":
            best = speed
        serving[speed] = best
    return serving
