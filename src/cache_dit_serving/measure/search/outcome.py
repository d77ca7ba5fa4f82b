"""Outcome of a search: the front, the chosen points and how they stand on prompts that the search has not seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cache_dit_serving.measure.distances.table import MEASURES, Measure
from cache_dit_serving.measure.search.drawer import Subject
from cache_dit_serving.measure.search.fewer_steps import FewerSteps, Verdict
from cache_dit_serving.measure.search.floors import Choice, Floors, choose, floors_text, in_values
from cache_dit_serving.measure.search.front import front
from cache_dit_serving.measure.search.measuring import labels_of
from cache_dit_serving.measure.search.points import Case, Point
from cache_dit_serving.measure.search.samples import Result, Samples
from cache_dit_serving.measure.search.verification import Checked, check, to_draw


@dataclass(frozen=True)
class Compared:
    """One of cache-dit's defaults against the front."""

    label: str
    default: Result
    faster: Result | None
    """Fastest point of the front that is as close; None: the default itself is on the front."""
    closer: Result | None
    """Closest point of the front that is as fast."""


@dataclass(frozen=True)
class Outcome:
    """All that the report shows."""

    subject: Subject
    measure: Measure
    floors: Floors
    """Floors in values of the measures."""
    asked: Floors
    """Floors as they were given, of which some are shares of the reference's steps."""
    labels: Mapping[str, str]
    """Labels of the points that every search measures, by key."""
    results: list[Result]
    """Points measured on every case of the search."""
    curve: FewerSteps | None
    """Uncached runs of fewer steps; None if the search ended before they were measured."""
    choices: list[Choice]
    trials: Mapping[str, int]
    cases: Sequence[Case]
    unseen: Sequence[Case]
    reference_s: float
    """Median seconds of the reference."""
    checked: list[Checked] = field(default_factory=list)
    """Choices on unseen prompts; empty if the search ended before they were drawn."""
    unseen_curve: FewerSteps | None = None
    wanted: list[Point] = field(default_factory=list)
    """Points that are still to be drawn on unseen prompts."""
    interrupted: bool = False
    seconds: float = 0.0
    conditions: Mapping[str, str] = field(default_factory=dict)

    @property
    def front(self) -> list[Result]:
        """Points that no other one beats. Cached points that reuse nothing are uncached in effect, and left out."""
        useful = [result for result in self.results if result.point.settings is None or result.cached_steps]
        return front(useful, self.measure)

    def verdict(self, result: Result) -> Verdict | None:
        """Return how a cached point stands against fewer steps; None for an uncached one."""
        return None if self.curve is None or result.point.settings is None else self.curve.verdict(result)

    def label(self, point: Point) -> str:
        return self.labels.get(point.key, "") or point.described()

    def compared(self) -> list[Compared]:
        """Return cache-dit's defaults against the front."""
        found = []
        for result in self.results:
            label = self.labels.get(result.point.key, "")
            if "cache-dit" not in label:
                continue
            loss, ratio = result.mean_loss(self.measure), result.median_ratio
            as_close = [each for each in self.front if each.mean_loss(self.measure) <= loss]
            as_fast = [each for each in self.front if each.median_ratio <= ratio]
            others = [
                next((each for each in order if each.point != result.point), None)
                for order in (as_close, as_fast[::-1])
            ]
            itself = result.point in [each.point for each in self.front]
            found.append(Compared(label, result, *([None, None] if itself else others)))
        return found

    def headline(self) -> str:
        """Return the report's first line: if the speeds hold on unseen prompts, and if fewer steps win."""
        if not self.results:
            return "**Nothing is measured whole yet.** Run the same command again to go on."
        stopped = "Interrupted: " if self.interrupted else ""
        if not self.checked:
            return f"{stopped}**NOT VERIFIED** on unseen prompts. Run the same command again to go on."
        return stopped + " ".join(_sentences(self.checked, len(self.unseen)))


def conclude(
    *,
    subject: Subject,
    measure: Measure,
    floors: Floors,
    fixed: Mapping[str, Point],
    samples: Samples,
    cases: Sequence[Case],
    unseen_samples: Samples,
    unseen: Sequence[Case],
    trials: Mapping[str, int],
    reference_s: float,
    interrupted: bool = False,
    seconds: float = 0.0,
) -> Outcome:
    """Return the outcome of what is measured so far. Choices are verified as far as their unseen outputs are drawn."""
    results = samples.complete(len(cases))
    curve = curve_of(results, measure, subject.steps)
    asked, floors = floors, in_values(floors, results, measure, steps=subject.steps)
    choices = choose(results, floors, curve) if curve is not None else []
    complete = {result.point.key: result for result in unseen_samples.complete(len(unseen))}
    unseen_curve = curve_of(list(complete.values()), measure, subject.steps)
    return Outcome(
        subject=subject,
        measure=measure,
        floors=floors,
        asked=asked,
        labels=labels_of(fixed),
        results=results,
        curve=curve,
        choices=choices,
        trials=trials,
        cases=cases,
        unseen=unseen,
        reference_s=reference_s,
        checked=check(choices, complete, unseen_curve),
        wanted=to_draw(choices, complete, results),
        unseen_curve=unseen_curve,
        interrupted=interrupted,
        seconds=seconds,
        conditions=subject.conditions,
    )


def curve_of(results: Sequence[Result], measure: Measure, steps: int) -> FewerSteps | None:
    """Return the curve of the uncached runs among results; None if there is none."""
    uncached = [result for result in results if result.point.settings is None and result.point.steps < steps]
    return FewerSteps(uncached, measure, steps=steps) if uncached else None


def _sentences(checked: Sequence[Checked], outputs: int) -> list[str]:
    """Return the outcome of the speeds in sentences, the worst first."""
    holding = [each.choice.speed for each in checked if each.holds]
    failing = [each for each in checked if each.missed]
    sentences = []
    if failing:
        told = "; ".join(f"`{each.choice.speed}` misses {floors_text(_only(each))}" for each in failing)
        sentences.append(f"**DOES NOT HOLD on unseen prompts: {told}.**")
    if holding:
        names = ", ".join(f"`{speed}`" for speed in holding)
        sentences.append(f"{names} {'holds' if len(holding) == 1 else 'hold'} on {outputs} unseen outputs.")
    absent = [each.choice for each in checked if each.named is None]
    sentences += [f"No cached point holds `{each.speed}` ({floors_text(each.floors)})." for each in absent]
    losing = [each for each in checked if each.fewer_steps_win]
    sentences += [_fewer_steps_win(each) for each in losing]
    if not losing and holding:
        sentences.append("Fewer steps win against none of them.")
    return sentences


def _fewer_steps_win(each: Checked) -> str:
    wins = f"**Fewer steps win for `{each.choice.speed}`"
    if each.winner is not None:
        time = f"{1 / each.winner.median_ratio:.2f}x"
        against = f" against {1 / each.named.median_ratio:.2f}x" if each.named is not None and each.holds else ""
        return f"{wins}: {each.winner.point.steps} plain steps** hold its floor ({time}{against})."
    assert each.verdict is not None
    return f"{wins}: {each.verdict.rival.steps} plain steps** are the nearest in time, and closer."


def _only(checked: Checked) -> dict[str, float]:
    return {name: checked.choice.floors[name] for name in checked.missed}


def value_of(result: Result, name: str, *, worst: bool = False) -> float:
    """Return the mean of a measure over a result's outputs, or the value of its worst decile."""
    measure = MEASURES[name]
    return measure.value(result.worst(measure).value if worst else result.mean_loss(measure))
