"""The ladder of speeds with some of them lowered."""

from __future__ import annotations

import itertools
import typing

import pytest

from cache_dit_serving.caching.speed_settings import Speed
from cache_dit_serving.caching.speeds import SPEEDS
from cache_dit_serving.measure.evidence.floor_watch import Status
from cache_dit_serving.measure.evidence.lowering import lowered

STATES: tuple[Status, ...] = typing.get_args(Status)


@pytest.mark.parametrize(
    ("allowed", "statuses", "expected"),
    [
        (SPEEDS, {}, {"lossless": "lossless", "high": "high", "balanced": "balanced", "fast": "fast"}),
        (SPEEDS, {"fast": "missed"}, {"fast": "balanced", "balanced": "balanced"}),
        (SPEEDS, {"fast": "missed", "balanced": "missed"}, {"fast": "high", "balanced": "high", "high": "high"}),
        (SPEEDS, {"balanced": "missed"}, {"fast": "fast", "balanced": "high"}),
        (SPEEDS, dict.fromkeys(SPEEDS, "missed"), dict.fromkeys(SPEEDS, "lossless")),
        (("lossless", "balanced", "fast"), {"fast": "missed", "balanced": "missed"}, {"fast": "lossless"}),
        (("lossless", "fast"), {"fast": "unknown"}, {"fast": "fast"}),
    ],
)
def test_a_missed_speed_is_served_by_the_next_less_approximate_one(
    allowed: tuple[Speed, ...], statuses: dict[Speed, Status], expected: dict[Speed, Speed]
) -> None:
    serving = lowered(allowed, statuses)
    assert serving.keys() == set(allowed)
    assert {speed: serving[speed] for speed in expected} == expected


def test_a_request_never_gets_a_missed_or_more_approximate_speed() -> None:
    for found in itertools.product(STATES, repeat=3):
        statuses: dict[Speed, Status] = dict(zip(SPEEDS[1:], found, strict=True))
        for speed, serving in lowered(SPEEDS, statuses).items():
            assert SPEEDS.index(serving) <= SPEEDS.index(speed)
            assert statuses.get(serving) != "missed"
