"""Samples of live traffic: a cached output, and its distances to the output of the same request without the cache."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from cache_dit_serving.measure.distances.table import MEASURES, Measure


class Series(NamedTuple):
    """Identity of what is measured: samples of two series say nothing about each other."""

    speed: str
    """Name of a speed, or `custom`."""
    settings_hash: str
    """Hash of the cache settings, as a generation reports it."""
    steps: int
    environment: str
    """Hash of all else that decides the output: the model, its weights, the hardware and the libraries."""


@dataclass(frozen=True)
class Sample:
    """One shadow run: a cached output against the uncached one of the same request.

    Raises:
        ValueError: a value is not finite or of no known measure, or the speed-up is not above 0.
    """

    at: float
    """End of the shadow run, seconds since the epoch."""
    speed: str
    """Name of a speed, or `custom`."""
    settings_hash: str
    steps: int
    """Denoising steps of both runs."""
    pipeline_class: str
    environment: str
    """Hash, see :class:`Series`."""
    values: Mapping[str, float] = field(default_factory=dict)
    """Distance by the name of its measure, as `Measure.finite` gives it. An output that is too small for a measure
    has none of it."""
    speedup: float = 1.0
    """Seconds of the uncached run over seconds of the cached one."""
    cached_steps: int = 0
    """Steps of the cached run that reused blocks."""
    request: str = ""
    """Id of the request."""
    broken: bool = False
    """True if the cached output has values that are not finite, and the uncached one has not. Such an output has no
    distance and lies beyond every floor."""

    def __post_init__(self) -> None:
        for name, value in self.values.items():
            if name not in MEASURES:
                raise ValueError(f"{name!r} is no measure")
            if not math.isfinite(value):
                raise ValueError(f"the value of {name} is not a finite number")
        if not (math.isfinite(self.speedup) and self.speedup > 0):
            raise ValueError("the speed-up is not a finite number above 0")

    @property
    def series(self) -> Series:
        return Series(self.speed, self.settings_hash, self.steps, self.environment)

    def loss(self, measure: Measure) -> float | None:
        """Return the loss of a measure, infinite for a broken output; None if the sample has no value of it."""
        if self.broken:
            return math.inf
        value = self.values.get(measure.name)
        return None if value is None else measure.loss(value)


def in_order(samples: Iterable[Sample]) -> list[Sample]:
    """Return samples in the order in which states fold over them: by time, then by request."""
    return sorted(samples, key=lambda sample: (sample.at, sample.request))
