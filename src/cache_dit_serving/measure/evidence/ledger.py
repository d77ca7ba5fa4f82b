"""Ledger of live evidence: every sample by its series, and the states of the floors that they decide."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from cache_dit_serving.measure.evidence.floor_watch import Status
from cache_dit_serving.measure.evidence.samples import Sample, Series
from cache_dit_serving.measure.evidence.speed_watch import SpeedState, SpeedWatch

KEPT = 2_000
"""Newest samples of a series that are kept; the states remember all."""


@dataclass(frozen=True)
class WatchedSpeed:
    """A speed as this server offers it, with its floors."""

    settings_hash: str
    floors: Mapping[str, float]
    """Value that at most a tenth of the outputs may lie beyond, by measure; empty: the speed is not watched."""


class Ledger:
    """Samples and states, a pure function of what was taken and in which order; for one thread."""

    def __init__(self, environment: str, speeds: Mapping[str, WatchedSpeed]) -> None:
        """
        Args:
            environment: hash of what decides the outputs now; samples of another one are shown and decide nothing.
            speeds: speeds that run a cache.
        """
        self.environment = environment
        self.speeds = speeds
        self.series: dict[Series, deque[Sample]] = {}
        """Newest samples of each series, oldest first."""
        self.watches = {name: SpeedWatch(each.floors) for name, each in speeds.items() if each.floors}
        self.states: dict[str, SpeedState] = {name: watch.start() for name, watch in self.watches.items()}

    def take(self, sample: Sample) -> None:
        """Take one sample."""
        self.series.setdefault(sample.series, deque(maxlen=KEPT)).append(sample)
        watch = self.watches.get(sample.speed)
        if watch is None or not self.is_current(sample.series):
            return
        self.states[sample.speed] = watch.step(self.states[sample.speed], sample)

    def samples_of(self, speed: str) -> list[Sample]:
        """Return the newest samples of the longest series of a speed as it is offered now; the steps may differ."""
        series = [each for each in self.series if each.speed == speed and self.is_current(each)]
        longest = max(series, key=lambda each: len(self.series[each]), default=None)
        return [] if longest is None else list(self.series[longest])

    def is_current(self, series: Series) -> bool:
        """Return True if a series is of a speed as it is offered now, in the environment of now."""
        offered = self.speeds.get(series.speed)
        return (
            offered is not None
            and series.environment == self.environment
            and series.settings_hash == offered.settings_hash
        )

    def restore(self, speed: str) -> None:
        """Have a speed's states start afresh, by the operator's word."""
        if (watch := self.watches.get(speed)) is not None:
            self.states[speed] = watch.start()

    def statuses(self) -> dict[str, Status]:
        """Return the status of each speed that is watched."""
        return {name: state.status for name, state in self.states.items()}
