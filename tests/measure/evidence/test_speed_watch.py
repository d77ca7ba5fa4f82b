"""The status of a speed with several floors."""

from __future__ import annotations

import json

import pytest

from cache_dit_serving.measure.evidence.floor_watch import RUNS_TO_FALSE_ALARM
from cache_dit_serving.measure.evidence.speed_watch import SpeedState, SpeedWatch
from tests.support.evidence import sample

WATCH = SpeedWatch({"ssim": 0.95, "flip": 0.05})
GOOD = {"ssim": 0.97, "flip": 0.01}
BLURRED = {"ssim": 0.9, "flip": 0.01}


def after(*runs: tuple[int, dict[str, float]]) -> SpeedState:
    """Return the state after so many samples of such values each, a second apart."""
    values = [value for count, value in runs for _ in range(count)]
    return WATCH.fold(sample(number, values=value) for number, value in enumerate(values))


def test_a_speed_misses_if_one_floor_is_missed_and_holds_if_all_hold() -> None:
    assert after((30, GOOD)).status == "unknown"
    assert after((40, GOOD)).status == "holds"
    assert after((40, {"ssim": 0.97})).status == "unknown"
    state = after((40, GOOD), (10, BLURRED))
    assert state.status == "missed"
    assert {name: each.status for name, each in state.floors.items()} == {"ssim": "missed", "flip": "holds"}
    assert after((40, GOOD), (10, BLURRED), (100, GOOD)).status == "holds"


def test_a_state_tells_the_time_of_its_last_change() -> None:
    assert after((30, GOOD)).changed_at is None
    held = after((100, GOOD)).changed_at
    assert held == 1035.0
    missed = after((100, GOOD), (50, BLURRED)).changed_at
    assert missed is not None
    assert 1103 <= missed <= 1106


def test_the_thresholds_of_several_floors_share_the_false_alarms() -> None:
    assert [watch.runs_to_false_alarm for watch in WATCH.floors.values()] == [2 * RUNS_TO_FALSE_ALARM] * 2


def test_a_state_survives_json() -> None:
    state = after((40, GOOD), (3, BLURRED))
    assert WATCH.from_json(json.loads(json.dumps(WATCH.as_json(state)))) == state


def test_a_stored_state_of_other_floors_is_refused() -> None:
    stored = WATCH.as_json(after((10, GOOD)))
    for other in ({"ssim": 0.95}, {"ssim": 0.96, "flip": 0.05}, {"ssim": 0.95, "psnr_db": 30.0}):
        with pytest.raises(ValueError, match="the state"):
            SpeedWatch(other).from_json(stored)
    for broken in ({}, {**stored, "floors": {"ssim": 1, "flip": 2}}, {**stored, "changed_at": "now"}):
        with pytest.raises(ValueError, match="the state"):
            WATCH.from_json(broken)


def test_a_speed_without_floors_is_not_watched() -> None:
    with pytest.raises(ValueError, match="without a floor"):
        SpeedWatch({})
