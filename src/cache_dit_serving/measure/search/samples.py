"""Samples: what was measured of a point on a case, kept in a file that outlives a kill."""

from __future__ import annotations

import functools
import json
import math
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from cache_dit_serving.measure.distances.table import Measure
from cache_dit_serving.measure.search.points import Point
from cache_dit_serving.measure.statistics import Estimate, mean, median, quantile

SURE = 0.8
"""Confidence of the bound on all outputs' worst decile."""
DRAWS = 200_000
"""Draws of the simulation of a tolerance factor, which is then right to 2 % and better."""
WORST = 0.1
"""Share of the outputs that are farther from their references than the worst decile."""


@dataclass(frozen=True)
class Sample:
    """One output of a point, against the reference that was drawn just before it."""

    ratio: float
    """Seconds over the reference's seconds."""
    seconds: float
    distances: dict[str, float]
    """Value of each measure, by name."""
    cached_steps: int = 0


@dataclass(frozen=True)
class Result:
    """All samples of a point, by the index of their case."""

    point: Point
    samples: dict[int, Sample]

    def ratios(self) -> list[float]:
        return [sample.ratio for sample in self.samples.values()]

    def losses(self, measure: Measure) -> list[float]:
        return [measure.loss(sample.distances[measure.name]) for sample in self.samples.values()]

    @property
    def median_ratio(self) -> float:
        """Median of seconds over the reference's seconds."""
        return statistics.median(sample.ratio for sample in self.samples.values())

    def mean_loss(self, measure: Measure) -> float:
        return statistics.fmean(self.losses(measure))

    def ratio(self) -> Estimate:
        """Return the median of seconds over the reference's seconds."""
        return median(self.ratios())

    def loss(self, measure: Measure) -> Estimate:
        """Return the mean loss of a measure."""
        return mean(self.losses(measure))

    def worst(self, measure: Measure) -> Estimate:
        """Return the loss that a tenth of the outputs exceed."""
        return quantile(self.losses(measure), 1 - WORST)

    def worst_bound(self, measure: Measure, sure: float = SURE) -> float:
        """Return a loss that a tenth of all outputs exceed at most, not only of those measured.

        It is the one-sided tolerance bound of normal losses (Natrella 1963, section 2-13), and not below the worst
        decile's interval. Errors other than ratios in decibels are normal in their logarithms: few are great.
        Of many points, the fastest that hold a floor on few outputs are those with luck. One output has no bound.

        Args:
            sure: confidence of the bound.
        """
        losses, high = self.losses(measure), self.worst(measure).high
        if len(losses) < 2:
            return math.inf
        factor = tolerance_factor(len(losses), sure)
        none = measure.least_loss
        if measure.is_ratio or min(losses) <= none:
            return max(high, statistics.fmean(losses) + factor * statistics.stdev(losses))
        logs = [math.log(loss - none) for loss in losses]
        return max(high, none + math.exp(statistics.fmean(logs) + factor * statistics.stdev(logs)))

    @property
    def cached_steps(self) -> float:
        """Mean number of steps that reused blocks."""
        return sum(sample.cached_steps for sample in self.samples.values()) / len(self.samples)

    @property
    def seconds(self) -> float:
        return statistics.median(sample.seconds for sample in self.samples.values())


@functools.lru_cache(maxsize=64)
def tolerance_factor(count: int, sure: float) -> float:
    """Return the standard deviations from the mean of normal values to the bound on their worst decile.

    The bound holds if (decile - Z / sqrt(count)) / S is at most the factor, with Z standard normal and S the standard
    deviation of `count` standard normal values. The factor is a quantile of that, by simulation.
    """
    rng = np.random.default_rng(0)
    away = NormalDist().inv_cdf(1 - WORST) - rng.standard_normal(DRAWS) / math.sqrt(count)
    spread = np.sqrt(rng.chisquare(count - 1, DRAWS) / (count - 1))
    return float(np.quantile(away / spread, sure))


class Samples:
    """Samples of one set of cases, appended to a file of JSON lines as they are measured."""

    def __init__(self, file: Path | None = None) -> None:
        """Read the file, if it is there. A last line that a kill cut short is dropped.

        Args:
            file: None: the samples live as long as this object.

        Raises:
            OSError: the file cannot be read or written.
        """
        self._file = file
        self._points: dict[str, Point] = {}
        self._samples: dict[str, dict[int, Sample]] = {}
        if file is not None and file.exists():
            whole = file.read_bytes().rpartition(b"\n")
            file.write_bytes(whole[0] + whole[1])
            for line in whole[0].splitlines():
                self._take(json.loads(line))

    def add(self, point: Point, case: int, sample: Sample) -> None:
        if self._file is not None:
            line = {**point.as_json(), "case": case, **asdict(sample)}
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        self._put(point, case, sample)

    def has(self, point: Point, case: int) -> bool:
        return case in self._samples.get(point.key, {})

    def of(self, point: Point) -> Result:
        """Return the samples of a point so far, in the order of their cases."""
        return Result(point, dict(sorted(self._samples.get(point.key, {}).items())))

    def complete(self, cases: int) -> list[Result]:
        """Return the points that were measured on all cases."""
        return [self.of(point) for key, point in self._points.items() if len(self._samples[key]) >= cases]

    def __len__(self) -> int:
        return sum(map(len, self._samples.values()))

    def _take(self, line: dict[str, Any]) -> None:
        names = ("ratio", "seconds", "distances", "cached_steps")
        self._put(Point.from_json(line), line["case"], Sample(**{name: line[name] for name in names}))

    def _put(self, point: Point, case: int, sample: Sample) -> None:
        self._points.setdefault(point.key, point)
        self._samples.setdefault(point.key, {})[case] = sample
