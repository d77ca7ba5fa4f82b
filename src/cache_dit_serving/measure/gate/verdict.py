"""Verdict of a gate: each speed's worst deciles against its floors, and the steps that it reused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cache_dit_serving.caching.speed_settings import Speed
from cache_dit_serving.measure.distances.table import MEASURES
from cache_dit_serving.measure.search.drawer import Subject
from cache_dit_serving.measure.search.points import Case, Point
from cache_dit_serving.measure.search.samples import Result


@dataclass(frozen=True)
class Held:
    """One measure of one speed."""

    measure: str
    worst_decile: float
    floor: float | None
    """None: the speed has no floor by this measure."""
    worst: float
    """Value of the farthest output."""
    case: Case
    """Prompt and seed of the farthest output."""

    @property
    def holds(self) -> bool:
        measure = MEASURES[self.measure]
        return self.floor is None or measure.loss(self.worst_decile) <= measure.loss(self.floor)


@dataclass(frozen=True)
class Judged:
    """One speed against its floors."""

    speed: Speed
    result: Result
    held: Sequence[Held]
    """All measures of the output's kind; empty if the speed could not be drawn."""
    origin: str
    """Origin of the floors, in words."""
    fault: str | None = None
    """Reason that the speed fails whatever its floors: it cannot be drawn, or reuses nothing; None: there is none."""

    @property
    def point(self) -> Point:
        return self.result.point

    @property
    def missed(self) -> list[Held]:
        return [each for each in self.held if not each.holds]

    @property
    def holds(self) -> bool:
        return self.fault is None and not self.missed


@dataclass(frozen=True)
class Verdict:
    """Outcome of a gate."""

    subject: Subject
    cases: Sequence[Case]
    prompts_are: str
    """Origin of the prompts, in words."""
    reference_s: float
    """Median seconds of the reference."""
    judged: Sequence[Judged]

    @property
    def holds(self) -> bool:
        return all(each.holds for each in self.judged)


def judge(
    speed: Speed,
    result: Result,
    cases: Sequence[Case],
    *,
    floors: Mapping[str, float],
    origin: str,
    failure: str | None = None,
) -> Judged:
    """Return a speed's verdict.

    Args:
        result: its samples, by the index of their case.
        floors: values of its worst deciles, by measure.
        origin: origin of the floors, in words.
        failure: reason that an output could not be drawn; None: all were.
    """
    if failure is not None:
        return Judged(speed, result, [], origin, f"cannot be drawn: {failure}")
    names = list(next(iter(result.samples.values())).distances)
    held = [_held(result, name, floors.get(name), cases) for name in names]
    reused = any(sample.cached_steps for sample in result.samples.values())
    fault = None if reused else f"reuses no step in {counted(len(result.samples), 'output')}"
    return Judged(speed, result, held, origin, fault)


def _held(result: Result, name: str, floor: float | None, cases: Sequence[Case]) -> Held:
    measure = MEASURES[name]
    index = max(result.samples, key=lambda each: measure.loss(result.samples[each].distances[name]))
    worst_decile = measure.value(result.worst(measure).value)
    return Held(name, worst_decile, floor, result.samples[index].distances[name], cases[index])


def counted(count: int, noun: str) -> str:
    """Return a number of things in words, such as `24 outputs`."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
