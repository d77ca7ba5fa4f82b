"""Uncached runs of fewer steps: the curve of time against distance that a cached point must beat."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from cache_dit_serving.measure.distances.table import Measure
from cache_dit_serving.measure.search.points import Point
from cache_dit_serving.measure.search.samples import Result
from cache_dit_serving.measure.statistics import Estimate, mean

SHARES = (0.86, 0.75, 0.61, 0.5, 0.41, 1 / 3, 0.25, 0.18, 0.125)
"""Steps of the baseline, as shares of the reference's. They include those of the default floors."""


def fewer_steps(steps: int, least: int) -> list[Point]:
    """Return the uncached runs of the baseline, most steps first, each with fewer steps than the reference."""
    counts = {max(least, 1, round(steps * share)) for share in SHARES}
    return [Point(count) for count in sorted(counts, reverse=True) if count < steps]


@dataclass(frozen=True)
class Verdict:
    """A cached point against the curve of fewer steps."""

    outcome: Literal["beats", "even", "loses"]
    """`beats`: closer than an uncached run of the same time, beyond doubt; `loses`: farther beyond doubt."""
    closer: Estimate
    """Loss of an uncached run of the same time, minus the point's loss."""
    time_saved: float | None
    """Share of time saved against an uncached run as close; negative if that is faster. None if none is as close."""
    rival: Point
    """Uncached run nearest in time that is not slower, or the fastest one."""


class FewerSteps:
    """Curve through the uncached runs of fewer steps and the reference itself, linear between them."""

    def __init__(self, results: Sequence[Result], measure: Measure, *, steps: int) -> None:
        """
        Args:
            results: uncached runs that were measured on the same cases.
            steps: the reference's.

        Raises:
            ValueError: there are no results.
        """
        if not results:
            raise ValueError("the curve needs at least one uncached run of fewer steps")
        self._measure = measure
        self._results = sorted(results, key=lambda result: result.median_ratio)
        self._times = [*(result.median_ratio for result in self._results), 1.0]
        self._equal = measure.least_loss
        self._reference = Point(steps)

    def points(self) -> list[tuple[float, float]]:
        """Return the curve's corners: time ratio and mean loss, the reference last."""
        losses = [*(result.mean_loss(self._measure) for result in self._results), self._equal]
        return list(zip(self._times, losses, strict=True))

    def verdict(self, result: Result) -> Verdict:
        """Return how a point stands against the curve. The doubt about its time counts against either verdict."""
        ratio = result.ratio()
        closer, when_slow, when_fast = (mean(self._closer(result, at)) for at in (ratio.value, ratio.high, ratio.low))
        outcome: Literal["beats", "even", "loses"] = "even"
        if when_slow.low > 0:
            outcome = "beats"
        elif when_fast.high < 0 and ratio.low >= self._times[0]:  # faster than every uncached run: nothing to lose to
            outcome = "loses"
        return Verdict(outcome, closer, self._time_saved(result), self._rival(ratio.value))

    def _closer(self, result: Result, at: float) -> list[float]:
        """Return, on each case, by how much the point is closer than the curve at a time."""
        found = []
        for case, sample in result.samples.items():
            losses = [self._measure.loss(each.samples[case].distances[self._measure.name]) for each in self._results]
            curve = float(np.interp(at, self._times, [*losses, self._equal]))
            found.append(curve - self._measure.loss(sample.distances[self._measure.name]))
        return found

    def _time_saved(self, result: Result) -> float | None:
        loss = result.mean_loss(self._measure)
        corners = sorted((corner_loss, time) for time, corner_loss in self.points())
        if loss > corners[-1][0]:
            return None
        plain = float(np.interp(loss, [corner for corner, _ in corners], [time for _, time in corners]))
        return 1 - result.median_ratio / plain if plain > 0 and math.isfinite(plain) else None

    def _rival(self, ratio: float) -> Point:
        not_slower = [
            result.point for result, time in zip(self._results, self._times, strict=False) if time <= ratio * 1.02
        ]
        return not_slower[-1] if not_slower else self._results[0].point
