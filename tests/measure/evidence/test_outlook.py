"""The share beyond a floor, its interval, and what is to come."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cache_dit_serving.measure.evidence.floor_watch import FloorState
from cache_dit_serving.measure.evidence.outlook import outlook
from cache_dit_serving.measure.evidence.share import share_of
from tests.support.evidence import IN_A_ROW, WATCH, after


def test_a_share_without_outputs_may_be_anything() -> None:
    none = share_of(0, 0)
    assert (none.value, none.low, none.high) == (None, 0.0, 1.0)


@pytest.mark.parametrize(("beyond", "outputs"), [(0, 1), (0, 40), (3, 40), (40, 40), (50, 500), (500, 5000)])
def test_an_interval_ends_at_a_wealth_of_20_against_its_ends(beyond: int, outputs: int) -> None:
    def wealth(p: float) -> float:
        """Return the wealth of bets on the share seen so far, one by one, in any order."""
        log, before = 0.0, 0
        for number, x in enumerate([1] * beyond + [0] * (outputs - beyond)):
            guess = (before + 0.5) / (number + 1)
            log += math.log(guess / p if x else (1 - guess) / (1 - p))
            before += x
        return math.exp(log)

    found = share_of(beyond, outputs)
    assert found.value == beyond / outputs
    assert found.low <= found.value <= found.high
    for end, outer in ((found.low, 0.0), (found.high, 1.0)):
        if end != outer:
            assert wealth(end) == pytest.approx(20, rel=1e-6)
    if beyond == 0:
        assert found.low == 0
    if beyond == outputs:
        assert found.high == 1


def test_an_interval_narrows_with_outputs_and_widens_with_confidence() -> None:
    widths = [share_of(count // 10, count).high - share_of(count // 10, count).low for count in (10, 100, 1000, 10_000)]
    assert widths == sorted(widths, reverse=True)
    assert share_of(4, 40, 0.99).low < share_of(4, 40, 0.9).low < share_of(4, 40, 0.9).high < share_of(4, 40, 0.99).high


def test_an_interval_stays_right_for_very_many_outputs() -> None:
    found = share_of(100_000, 1_000_000)
    assert 0.098 < found.low < 0.1 < found.high < 0.102
    assert math.isfinite(found.low)


def test_the_outlook_counts_down_to_a_proof() -> None:
    found = [outlook(WATCH, after("." * count)) for count in range(IN_A_ROW + 1)]
    assert (found[0].to_proof, found[0].to_alarm) == (None, None)
    assert [each.to_proof for each in found[1:]] == [*range(IN_A_ROW - 1, 0, -1), None]


def test_the_outlook_counts_down_to_an_alarm() -> None:
    state = FloorState("holds")
    assert [outlook(WATCH, after("x" * count, state)).to_alarm for count in range(1, 5)] == [4, 3, 2, 1]


def test_the_outlook_of_a_missed_floor_tells_what_made_the_alarm() -> None:
    found = outlook(WATCH, after("xxxxx" + ".."))
    assert found.before is not None
    assert (found.before.beyond, found.before.outputs) == (5, 5)
    assert (found.now.beyond, found.now.outputs) == (0, 2)
    assert (found.to_alarm, found.to_proof) == (None, IN_A_ROW - 2)


def test_a_share_at_the_limit_has_no_change_in_sight() -> None:
    found = outlook(WATCH, after(("x" + "." * 9) * 4))
    assert (found.to_alarm, found.to_proof) == (None, None)


def test_an_interval_that_excludes_the_limit_and_a_proof_come_about_together() -> None:
    ends = np.array([share_of(0, count).high for count in range(1, 80)])
    assert IN_A_ROW < 1 + int(np.argmax(ends < 0.1)) < 60
