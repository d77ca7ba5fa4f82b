"""Outcome of a search: the front, the chosen points and how they stand on prompts that the search has not seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cache_dit_serving.measure.search.drawer import Subject
from cache_dit_serving.measure.search.fewer_steps import FewerSteps, Verdict
from cache_dit_serving.measure.search.floors import Choice, Floors, choose, floors_text, missed
from cache_dit_serving.measure.search.front import faster, front
from cache_dit_serving.measure.search.measures import MEASURES, Measure
from cache_dit_serving.measure.search.measuring import labels_of
from cache_dit_serving.measure.search.points import Case, Point
from cache_dit_serving.measure.search.samples import Result, Samples


@dataclass(frozen=True)
class Checked:
    """One choice on the unseen prompts."""

    choice: Choice
    named: Result | None
    """Samples of the named point on the unseen prompts."""
    best: Result | None
    missed: list[str]
    """Measures whose floor the named point's worst decile misses there."""
    verdict: Verdict | None
    """Verdict of the named point against fewer steps, on the unseen prompts; None without a named point."""

    @property
    def holds(self) -> bool:
        return self.named is not None and not self.missed

    @property
    def plain(self) -> Result | None:
        """Uncached run that holds the floors and is faster than the named point beyond doubt; None: none is."""
        if self.named is None or self.best is None or self.best.point.settings is not None:
            return None
        holds = not missed(self.best, self.choice.floors, beyond_doubt=False)
        return self.best if holds and faster(self.best, self.named) else None

    @property
    def fewer_steps_win(self) -> bool:
        return self.plain is not None or (self.verdict is not None and self.verdict.outcome == "loses")


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
        holding = [each.choice.speed for each in self.checked if each.holds]
        failing = [each for each in self.checked if each.named is not None and each.missed]
        absent = [each.choice for each in self.checked if each.named is None]
        sentences = []
        if failing:
            sentences.append(
                "**DOES NOT HOLD on unseen prompts: "
                + "; ".join(f"`{each.choice.speed}` misses {floors_text(_only(each))}" for each in failing)
                + ".**"
            )
        if holding:
            names = ", ".join(f"`{speed}`" for speed in holding)
            sentences.append(f"{names} {_verb(holding)} on {len(self.unseen)} unseen outputs.")
        sentences += [f"No cached point holds `{each.speed}` ({floors_text(each.floors)})." for each in absent]
        losing = [each for each in self.checked if each.fewer_steps_win]
        sentences += [_fewer_steps_win(each) for each in losing]
        if not losing and holding:
            sentences.append("Fewer steps win against none of them.")
        return stopped + " ".join(sentences)


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
    choices = choose(results, floors, curve, steps=subject.steps) if curve is not None else []
    complete = {result.point.key: result for result in unseen_samples.complete(len(unseen))}
    unseen_curve = curve_of(list(complete.values()), measure, subject.steps)
    checked = []
    wanted = [each for choice in choices for each in (choice.named, choice.best) if each is not None]
    if unseen_curve is not None and all(result.point.key in complete for result in wanted):
        checked = [_checked(choice, complete, unseen_curve) for choice in choices]
    return Outcome(
        subject=subject,
        measure=measure,
        floors=floors,
        labels=labels_of(fixed),
        results=results,
        curve=curve,
        choices=choices,
        trials=trials,
        cases=cases,
        unseen=unseen,
        reference_s=reference_s,
        checked=checked,
        unseen_curve=unseen_curve,
        interrupted=interrupted,
        seconds=seconds,
        conditions=subject.conditions,
    )


def curve_of(results: Sequence[Result], measure: Measure, steps: int) -> FewerSteps | None:
    """Return the curve of the uncached runs among results; None if there is none."""
    uncached = [result for result in results if result.point.settings is None and result.point.steps < steps]
    return FewerSteps(uncached, measure, steps=steps) if uncached else None


def to_verify(choices: Sequence[Choice], results: Sequence[Result], steps: int) -> list[Point]:
    """Return the points to draw on unseen prompts: the chosen ones, and the uncached runs next to each in time."""
    chosen = [each for choice in choices for each in (choice.named, choice.best) if each is not None]
    uncached = [each for each in results if each.point.settings is None and each.point.steps < steps]
    uncached.sort(key=lambda each: each.median_ratio)
    beside: list[Result] = []
    for each in chosen:
        faster = sum(other.median_ratio <= each.median_ratio for other in uncached)
        beside += uncached[max(0, faster - 1) : faster + 1]
    return list({each.point.key: each.point for each in (*chosen, *beside)}.values())


def _checked(choice: Choice, complete: Mapping[str, Result], curve: FewerSteps) -> Checked:
    named, best = (complete[each.point.key] if each is not None else None for each in (choice.named, choice.best))
    return Checked(
        choice,
        named,
        best,
        missed(named, choice.floors, beyond_doubt=False) if named is not None else [],
        curve.verdict(named) if named is not None else None,
    )


def _fewer_steps_win(each: Checked) -> str:
    wins = f"**Fewer steps win against `{each.choice.speed}`**: "
    if each.plain is not None and each.named is not None:
        times = f"{1 / each.plain.median_ratio:.2f}x against {1 / each.named.median_ratio:.2f}x"
        return f"{wins}{each.plain.point.steps} steps without a cache hold its floor faster ({times})."
    assert each.verdict is not None
    nearest = each.verdict.rival.steps
    return f"{wins}an output of the same time without a cache is closer (nearest: {nearest} steps)."


def _only(checked: Checked) -> dict[str, float]:
    return {name: checked.choice.floors[name] for name in checked.missed}


def _verb(speeds: Sequence[str]) -> str:
    return "holds" if len(speeds) == 1 else "hold"


def value_of(result: Result, name: str, *, worst: bool = False) -> float:
    """Return the mean of a measure over a result's outputs, or the value of its worst decile."""
    measure = MEASURES[name]
    return measure.value(result.worst(measure).value if worst else result.mean_loss(measure))
