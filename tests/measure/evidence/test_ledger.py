"""The ledger of live evidence: what decides a speed's status, and what is only shown."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cache_dit_serving.measure.evidence.ledger import KEPT, Ledger, WatchedSpeed
from cache_dit_serving.measure.evidence.lowering import lowered
from tests.support.evidence import IN_A_ROW, sample

FLOOR = 0.95
SPEEDS = {"high": WatchedSpeed("h1", {}), "fast": WatchedSpeed("a1", {"ssim": FLOOR})}


@pytest.fixture
def ledger() -> Ledger:
    return Ledger("e1", SPEEDS)


def take(ledger: Ledger, count: int, ssim: float, **fields: object) -> None:
    for number in range(count):
        ledger.take(replace(sample(number, values={"ssim": ssim}), **fields))  # type: ignore[arg-type]


def test_a_speed_that_misses_its_floor_comes_back_on_proof_or_by_the_operators_word(ledger: Ledger) -> None:
    take(ledger, 5, 0.5)
    assert ledger.statuses() == {"fast": "missed"}
    assert lowered(("lossless", "high", "fast"), ledger.statuses())["fast"] == "high"
    take(ledger, IN_A_ROW, 0.99)
    assert ledger.statuses() == {"fast": "holds"}
    take(ledger, 5, 0.5)
    assert ledger.statuses() == {"fast": "missed"}
    ledger.restore("fast")
    assert ledger.statuses() == {"fast": "unknown"}
    ledger.restore("high")  # it is not watched: nothing to do


def test_evidence_of_other_versions_settings_or_steps_decides_as_far_as_it_may(ledger: Ledger) -> None:
    take(ledger, 20, 0.5, environment="before the upgrade")
    take(ledger, 20, 0.5, settings_hash="other settings")
    take(ledger, 20, 0.5, speed="custom")
    take(ledger, 20, 0.5, speed="high", settings_hash="h1")
    assert ledger.statuses() == {"fast": "unknown"}
    assert len(ledger.series) == 4
    assert [series.speed for series in ledger.series if ledger.is_current(series)] == ["high"]
    # Whatever number of steps its requests choose, the speed is one.
    take(ledger, 3, 0.5, steps=10)
    take(ledger, 2, 0.5, steps=50)
    assert ledger.statuses() == {"fast": "missed"}


def test_a_broken_output_lies_beyond_every_floor(ledger: Ledger) -> None:
    for number in range(5):
        ledger.take(sample(number, broken=True))
    assert ledger.statuses() == {"fast": "missed"}


def test_all_who_take_the_same_come_to_the_same_and_keep_the_newest(ledger: Ledger) -> None:
    other = Ledger("e1", SPEEDS)
    for number in range(KEPT + 50):
        taken = sample(number, values={"ssim": 0.9 if number % 7 else 0.99})
        ledger.take(taken)
        other.take(taken)
    assert ledger.states == other.states
    (samples,) = ledger.series.values()
    assert (len(samples), samples[0].request) == (KEPT, "r50")
    assert ledger.samples_of("fast") == list(samples)
    assert ledger.samples_of("high") == []
