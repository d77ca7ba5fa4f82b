"""Interface of what draws a point: a model in this process, or a server by its public API."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from cache_dit_serving.caching.report import BlockListStats
from cache_dit_serving.caching.settings import CacheType
from cache_dit_serving.measure.search.points import Case, Point
from cache_dit_serving.media.values import Media, MediaKind


class CannotDraw(Exception):
    """A point cannot be drawn: its settings do not fit the model, or its output is not finite. The message says why."""


class Interrupted(Exception):
    """The drawing was stopped between two steps, because the user interrupted the search."""


@dataclass(frozen=True)
class Subject:
    """The model whose settings are searched, as far as the search needs to know it."""

    name: str
    kind: MediaKind
    steps: int
    """Steps of the reference, the uncached run that every distance is to."""
    least_steps: int
    """Minimum number of steps that the scheduler takes."""
    block_lists: Mapping[str, int]
    """Number of blocks by `transformer.block_list`."""
    cache_types: tuple[CacheType, ...]
    """Types of cache that run on it."""
    usual_steps: int | None = None
    """Steps of a request that names none and runs no cache; None: not known."""
    configured: Mapping[str, Point] = field(default_factory=dict)
    """Cache settings and steps by the speeds that the configuration has now."""
    conditions: Mapping[str, str] = field(default_factory=dict)
    """Circumstances of a measurement: device, versions, dtype, attention backend and the like."""

    @property
    def transformers(self) -> list[str]:
        return list(dict.fromkeys(label.split(".", 1)[0] for label in self.block_lists))

    @property
    def shortest(self) -> int:
        """Number of blocks in the shortest block list."""
        return min(self.block_lists.values())

    @property
    def longest(self) -> int:
        """Number of blocks in the longest block list."""
        return max(self.block_lists.values())


@dataclass(frozen=True)
class Drawn:
    """One output, with the pipeline's own account of it."""

    media: Media
    seconds: float
    """Prompt to output by the pipeline's clock, seconds."""
    cached_steps: int = 0
    """Steps that reused blocks."""
    diffs: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    """Residual difference by step, by `transformer.block_list`; of several blocks in a step their mean."""


def diffs_of(stats: Iterable[BlockListStats]) -> dict[str, dict[int, float]]:
    """Return the residual difference by step, by block list; of several blocks in a step their mean.

    cache-dit's codes below 0 are left out.
    """
    found: dict[str, dict[int, float]] = {}
    for record in stats:
        steps = {}
        for step, diff in record.diffs.items():
            numbers = [each for each in (diff if isinstance(diff, list) else [diff]) if each >= 0]
            if numbers:
                steps[step] = statistics.fmean(numbers)
        found[f"{record.transformer}.{record.block_list}"] = steps
    return found


class Drawer(Protocol):
    """Source of outputs. The search knows nothing else of models and servers."""

    @property
    def subject(self) -> Subject: ...

    def draw(self, case: Case, point: Point) -> Drawn:
        """Draw the output of a case at a point.

        Raises:
            CannotDraw: the point's settings do not run on this model.
            Interrupted: the user has interrupted the search.
            ServingError: the model or the server failed.
        """
        ...

    def close(self) -> None:
        """End what the drawer holds."""
        ...
