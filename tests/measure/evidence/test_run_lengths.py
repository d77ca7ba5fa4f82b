"""Alarms and proofs on outputs whose share beyond the floor is known: how often wrong, and how soon right."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.floors_simulation import (
    STATUSES,
    Watches,
    changes,
    ever_outside,
    theory,
    times_of_one_start,
    times_to_alarm,
    times_to_proof,
)
from cache_dit_serving.measure.evidence.betting import HOLD_BETS, LIMIT, MISS_BETS, budget
from cache_dit_serving.measure.evidence.floor_watch import RUNS_TO_FALSE_ALARM, WRONG_PROOF, FloorState, FloorWatch
from cache_dit_serving.measure.evidence.outlook import outputs_to_alarm, outputs_to_proof
from cache_dit_serving.measure.evidence.speed_watch import SpeedWatch

WATCH = FloorWatch("ssim", 0.95)
SURE = 2.6
"""Standard errors within which a mean of a simulation lies 99 times of 100."""


def test_the_simulation_has_the_states_of_the_watch() -> None:
    shares = np.array([0.0, 0.05, 0.2, 0.5, 0.5, 1.0])
    drawn = np.random.default_rng(1).random((400, len(shares)))
    drawn[200:] = 1 - drawn[200:] ** 4  # good outputs after bad ones
    watches, states = Watches(len(shares), WATCH), [FloorState()] * len(shares)
    seen = set()
    for outputs in drawn < shares:
        watches.step(outputs)
        states = [WATCH.step(state, bool(beyond)) for state, beyond in zip(states, outputs, strict=True)]
        assert [STATUSES[status] for status in watches.status] == [state.status for state in states]
        assert watches.outputs.tolist() == [state.outputs for state in states]
        seen |= {state.status for state in states}
    assert seen == set(STATUSES)


def test_no_bet_has_a_mean_above_1_on_its_side_of_the_limit() -> None:
    for bets, shares in ((MISS_BETS, np.linspace(0, LIMIT, 11)), (HOLD_BETS, np.linspace(LIMIT, 1, 11))):
        for bet in bets:
            assert min(bet.within, bet.beyond) >= 0
            assert max(share * bet.beyond + (1 - share) * bet.within for share in shares) <= 1 + 1e-12


def test_the_parts_of_the_proof_add_up_to_its_capital() -> None:
    assert sum(budget(number) for number in range(1000)) == pytest.approx(1 - 1 / 1001)


def test_false_alarms_at_the_very_edge_are_as_rare_as_promised() -> None:
    # Runs that are cut off count as the limit, so the mean is too low, not too high.
    times = times_to_alarm(LIMIT, runs=400, limit=10_000, watch=WATCH)
    assert times.mean - SURE * times.error >= RUNS_TO_FALSE_ALARM
    assert times.came.mean() > 0.9


def test_false_alarms_of_a_speed_with_two_floors_are_as_rare() -> None:
    speed = SpeedWatch({"ssim": 0.95, "flip": 0.05})
    times = times_to_alarm(LIMIT, runs=800, limit=8000, watch=speed.floors["ssim"])
    first = times.outputs.reshape(2, -1).min(axis=0)
    assert first.mean() - SURE * first.std() / len(first) ** 0.5 >= RUNS_TO_FALSE_ALARM


@pytest.mark.parametrize("share", [0.2, 0.3, 0.5, 1.0])
def test_a_miss_is_found_about_as_soon_as_theory_has_it(share: float) -> None:
    times = times_to_alarm(share, runs=400, watch=WATCH)
    assert times.came.all()
    assert 0.5 < times.mean / theory(share, RUNS_TO_FALSE_ALARM) < 1.6


@pytest.mark.parametrize("share", [0.2, 0.3, 0.5, 1.0])
def test_good_outputs_before_a_change_do_not_delay_its_alarm(share: float) -> None:
    at_once = times_to_alarm(share, runs=400, watch=WATCH)
    later = times_to_alarm(share, runs=400, good_outputs=500, watch=WATCH)
    assert later.mean < at_once.mean + SURE * (at_once.error + later.error)
    one_start = times_of_one_start(share, runs=100, good_outputs=500, watch=WATCH)
    assert one_start.mean > 5 * later.mean


def test_a_share_near_the_limit_makes_no_flapping() -> None:
    outputs = 10_000
    shares = np.repeat([LIMIT - 0.02, LIMIT + 0.02], 100)
    found, _ = changes(shares, outputs=outputs, watch=WATCH)
    below, above = found[:100], found[100:]
    # Each false alarm can be followed by one return; each return from a true alarm has a chance of WRONG_PROOF.
    assert below.mean() <= 2 * outputs / RUNS_TO_FALSE_ALARM
    assert above.mean() <= 2 / (1 - WRONG_PROOF)
    assert found.max() <= 2 * outputs / RUNS_TO_FALSE_ALARM


@pytest.mark.parametrize(("bad_outputs", "most"), [(0, 80), (100, 220), (500, 270)])
def test_a_repaired_speed_comes_back(bad_outputs: int, most: float) -> None:
    times = times_to_proof(0.02, runs=300, bad_outputs=bad_outputs, watch=WATCH)
    assert times.came.all()
    assert times.mean < most


def test_a_speed_that_misses_its_floor_seldom_comes_back_ever() -> None:
    times = times_to_proof(LIMIT, runs=1000, limit=2000, watch=WATCH)
    assert times.came.mean() <= WRONG_PROOF + SURE * (WRONG_PROOF / 1000) ** 0.5


@pytest.mark.parametrize("share", [0.02, LIMIT, 0.3])
def test_the_true_share_lies_in_all_intervals_of_a_sequence(share: float) -> None:
    assert ever_outside(share, outputs=1000, runs=1000) <= 0.05


@pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
def test_the_outlook_to_an_alarm_is_about_the_mean(share: float) -> None:
    expected = outputs_to_alarm(WATCH, FloorState(), share)
    assert expected is not None
    assert 1 <= expected / times_to_alarm(share, runs=200, watch=WATCH).mean < 1.6


@pytest.mark.parametrize("share", [0.0, 0.02, 0.05])
def test_the_outlook_to_a_proof_is_about_the_mean(share: float) -> None:
    expected = outputs_to_proof(WATCH, FloorState("missed"), share)
    assert expected is not None
    assert 1 <= expected / times_to_proof(share, runs=200, watch=WATCH).mean < 1.6
