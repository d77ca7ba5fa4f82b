"""The states of a watched floor, output by output."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cache_dit_serving.measure.evidence.floor_watch import FloorState, FloorWatch
from cache_dit_serving.measure.evidence.samples import in_order
from tests.support.evidence import IN_A_ROW, WATCH, after, sample


def test_a_floor_is_unknown_until_there_is_proof_or_an_alarm() -> None:
    assert after("").status == "unknown"
    assert after("." * (IN_A_ROW - 1)).status == "unknown"
    assert after("." * IN_A_ROW).status == "holds"
    assert after("xxxx").status == "unknown"
    assert after("xxxxx").status == "missed"


def test_a_floor_that_held_is_missed_after_no_more_bad_outputs() -> None:
    assert after("." * 1000 + "xxx").status == "holds"
    assert after("." * 1000 + "xxxx").status == "missed"


def test_a_missed_floor_comes_back_by_proof_alone_and_starts_afresh() -> None:
    missed = after("xxxxx")
    assert after("." * (IN_A_ROW - 1), missed).status == "missed"
    back = after("." * IN_A_ROW, missed)
    assert back == FloorState("holds", outputs_before=IN_A_ROW, beyond_before=0)
    assert after("xxxxx", back).status == "missed"


def test_bad_outputs_delay_a_recovery_by_little() -> None:
    missed = after("xxxxx" + "x" * 1000)
    assert missed.status == "missed"
    assert after("." * 150, missed).status == "holds"


def test_a_state_tells_the_outputs_that_made_it() -> None:
    state = after("..x.xxxx")
    assert (state.status, state.outputs_before, state.beyond_before, state.outputs) == ("missed", 8, 5, 0)
    state = after("..x", state)
    assert (state.outputs, state.beyond, state.outputs_before) == (3, 1, 8)


def test_an_output_on_the_floor_is_within_it() -> None:
    assert WATCH.beyond(sample(values={"ssim": 0.95})) is False
    assert WATCH.beyond(sample(values={"ssim": 0.9499})) is True
    flip = FloorWatch("flip", 0.05)
    assert flip.beyond(sample(values={"flip": 0.05})) is False
    assert flip.beyond(sample(values={"flip": 0.0501})) is True


def test_equal_outputs_hold_a_floor_of_any_ratio() -> None:
    assert FloorWatch("psnr_db", 120.0).beyond(sample(values={"psnr_db": 100.0})) is False


def test_a_sample_without_the_measure_changes_nothing() -> None:
    state = after("..x")
    assert WATCH.take(state, sample(values={"psnr_db": 40.0})) is state


def test_a_broken_output_lies_beyond_every_floor() -> None:
    assert WATCH.beyond(sample(broken=True)) is True
    assert FloorWatch("flip", 1.0).beyond(sample(broken=True)) is True


def test_a_state_survives_json_to_the_last_bit() -> None:
    outputs = "..x.....x.." * 5
    for end in range(len(outputs)):
        state = after(outputs[:end])
        stored = WATCH.from_json(json.loads(json.dumps(WATCH.as_json(state))))
        assert stored == state
        assert after(outputs[end:], stored) == after(outputs)


@pytest.mark.parametrize(
    "change",
    [
        {"watch": FloorWatch("ssim", 0.9).as_json(FloorState())["watch"]},
        {"watch": None},
        {"alarm": [0.0]},
        {"status": "good"},
        {"other": 1},
    ],
)
def test_a_stored_state_of_another_watch_or_version_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="the state"):
        WATCH.from_json({**WATCH.as_json(after("..x")), **change})


def test_processes_that_read_the_same_samples_agree() -> None:
    samples = [sample(number, values={"ssim": 0.9 if number % 7 == 0 else 0.97}) for number in range(80)]
    whole = WATCH.fold(in_order(reversed(samples)))
    first = WATCH.as_json(WATCH.fold(samples[:33]))
    assert WATCH.fold(samples[33:], WATCH.from_json(json.loads(json.dumps(first)))) == whole
    assert whole.outputs == 80


def test_a_restored_floor_starts_afresh() -> None:
    assert WATCH.restore() == FloorState()


def test_samples_and_floors_hold_finite_values_of_known_measures() -> None:
    with pytest.raises(ValueError, match="psnr_db is not a finite number"):
        sample(values={"psnr_db": float("inf")})
    with pytest.raises(ValueError, match="'likeness' is no measure"):
        sample(values={"likeness": 1.0})
    with pytest.raises(ValueError, match="speed-up"):
        sample(speedup=0.0)
    with pytest.raises(ValueError, match="'likeness' is no measure"):
        FloorWatch("likeness", 1.0)
    with pytest.raises(ValueError, match="floor of ssim"):
        FloorWatch("ssim", float("nan"))
