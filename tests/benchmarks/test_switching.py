"""The page of switches between models: its simulation, over the queue of the server."""

from __future__ import annotations

import statistics

import pytest

from benchmarks import switching


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(switching, "HOURS", 0.2)


@pytest.mark.parametrize("fleet", switching.FLEETS, ids=str)
def test_the_default_waits_and_switches_less_than_first_come_first_served(fleet: switching.Fleet) -> None:
    first_come, default = (simulated(fleet, switch_after_s) for switch_after_s in (0.0, None))
    assert default.switches < first_come.switches
    assert statistics.mean(default.waits) < statistics.mean(first_come.waits)
    assert default.drawing >= first_come.drawing


@pytest.mark.parametrize("switch_after_s", [0.0, None, 10.0])
def test_the_first_is_overtaken_no_longer_than_its_patience(switch_after_s: float | None) -> None:
    of = simulated(switching.Fleet(switching.THIRDS, 1), switch_after_s)
    assert len(of.waits) > 300
    assert of.too_long == 0


def simulated(fleet: switching.Fleet, switch_after_s: float | None) -> switching.Simulated:
    return switching.simulated(fleet, 1.5, 1.2, 0.9, switch_after_s)
