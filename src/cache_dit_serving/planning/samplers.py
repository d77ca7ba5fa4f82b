"""Schedulers as planning sees them: those that requests may choose, and the choice of one request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple


class SamplerChoice(NamedTuple):
    """Scheduler of one call."""

    name: str
    shift: float | None = None
    """Shift of the noise levels in place of the scheduler's own; None: its own."""


@dataclass(frozen=True)
class Sampler:
    """A scheduler that requests may choose."""

    name: str
    scheduler_class: str
    per_step: int = 1
    """Forward passes that each of the requested steps adds: 2 for Heun's method."""
    further: int = 0
    """Forward passes beyond these: -1 for Heun's method, whose last step makes one."""
    least_steps: int = 1
    """Minimum number of steps. The scheduler fails with fewer."""
    takes_sigmas: bool = True
    """True if it follows the noise levels of a request."""
    shift: float | None = None
    """Its static shift; None if the shift follows the size, or it has none."""
    takes_shift: bool = False
    """True if a request may set the shift."""

    def evaluations(self, steps: int) -> int:
        """Return how often the noise is predicted in `steps` steps. The cache counts each as a step."""
        return max(1, self.per_step * steps + self.further)


@dataclass(frozen=True)
class SamplerTraits:
    """Schedulers of one pipeline."""

    own: Sampler
    """The scheduler that the model has."""
    offered: tuple[Sampler, ...] = ()
    """Other schedulers that requests may choose, in the configuration's order."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Reason, by name, for each scheduler of the configuration that the pipeline cannot draw with."""

    @property
    def by_name(self) -> dict[str, Sampler]:
        """All schedulers that requests may choose, the model's own first."""
        return {sampler.name: sampler for sampler in (self.own, *self.offered)}

    def without(self, refused: Mapping[str, str]) -> SamplerTraits:
        """Return the traits with further schedulers refused, each for a reason."""
        offered = tuple(sampler for sampler in self.offered if sampler.name not in refused)
        return replace(self, offered=offered, refused={**self.refused, **refused})
