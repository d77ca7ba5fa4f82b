"""Verification: the candidates of each speed on prompts that the search has not seen, one after another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from cache_dit_serving.caching.speed_settings import Speed
from cache_dit_serving.measure.search.fewer_steps import FewerSteps, Verdict
from cache_dit_serving.measure.search.floors import Choice, missed
from cache_dit_serving.measure.search.front import faster
from cache_dit_serving.measure.search.points import Point
from cache_dit_serving.measure.search.samples import SURE, Result


@dataclass(frozen=True)
class Checked:
    """One choice on the unseen prompts."""

    choice: Choice
    named: Result | None
    """Samples of the point that holds, or of the last one that was tried; None: there was no candidate."""
    missed: list[str]
    """Measures whose floor the named point may miss there."""
    verdict: Verdict | None
    """Verdict of the named point against fewer steps, on the unseen prompts; None without a named point."""
    plain: Result | None
    """Fastest uncached run that held the floors in the search, if it does so here."""
    tried: list[Result] = field(default_factory=list)
    """Candidates that were drawn, in order."""
    same_as: Speed | None = None
    """Speed with stricter floors whose point this is; None: the point is its own."""

    @property
    def holds(self) -> bool:
        return self.named is not None and not self.missed

    @property
    def winner(self) -> Result | None:
        """Uncached run that holds the floors while no cached point does so as fast; None: there is none."""
        if self.plain is None or (self.holds and self.named is not None and not faster(self.plain, self.named)):
            return None
        return self.plain

    @property
    def fewer_steps_win(self) -> bool:
        return self.winner is not None or (self.verdict is not None and self.verdict.outcome == "loses")


def check(choices: Sequence[Choice], complete: Mapping[str, Result], curve: FewerSteps | None) -> list[Checked]:
    """Return the choices as they stand on the unseen prompts; empty while a point that decides is not drawn.

    A speed takes the point of a stricter one where that holds its floors too and is faster, or where its own candidates
    do not hold: speeds come in order of time.

    Args:
        complete: points that were drawn on all unseen prompts, by key.
        curve: uncached runs on the unseen prompts; None: none is drawn.
    """
    found: list[Checked] = []
    for choice in choices:
        tried = _tried(choice, complete)
        ended = len(tried) == len(choice.candidates) or (tried and _holds(tried[-1], choice))
        if not ended or (choice.plain is not None and choice.plain.point.key not in complete):
            return []
        plain = complete[choice.plain.point.key] if choice.plain is not None else None
        own = tried[-1] if tried else None
        each = Checked(
            choice,
            own,
            missed(own, choice.floors, sure=choice.sure) if own is not None else [],
            curve.verdict(own) if own is not None and curve is not None else None,
            plain if plain is not None and not missed(plain, choice.floors, sure=SURE) else None,
            tried,
        )
        before = next((other for other in reversed(found) if other.holds), None)
        found.append(each if before is None else _in_order(each, before))
    return found


def _in_order(each: Checked, stricter: Checked) -> Checked:
    assert stricter.named is not None
    slower = each.named is None or not each.holds or each.named.median_ratio > stricter.named.median_ratio
    if not slower or not _holds(stricter.named, each.choice):
        return each
    same_as = stricter.same_as or stricter.choice.speed
    return replace(each, named=stricter.named, missed=[], verdict=stricter.verdict, same_as=same_as)


def to_draw(choices: Sequence[Choice], complete: Mapping[str, Result], results: Sequence[Result]) -> list[Point]:
    """Return the points to draw next on unseen prompts: one more candidate of each speed that still lacks a point.

    The uncached runs next to each candidate in time are drawn with it, and the fastest that hold the floors.

    Args:
        results: points on the search's prompts.
    """
    wanted: list[Result] = []
    for choice in choices:
        tried = _tried(choice, complete)
        if len(tried) < len(choice.candidates) and not (tried and _holds(tried[-1], choice)):
            wanted.append(choice.candidates[len(tried)])
        if choice.plain is not None:
            wanted.append(choice.plain)
    uncached = [each for each in results if each.point.settings is None]
    uncached.sort(key=lambda each: each.median_ratio)
    beside: list[Result] = []
    for each in wanted:
        faster_runs = sum(other.median_ratio <= each.median_ratio for other in uncached)
        beside += uncached[max(0, faster_runs - 1) : faster_runs + 1]
    points = {each.point.key: each.point for each in (*wanted, *beside)}
    return [point for key, point in points.items() if key not in complete]


def _tried(choice: Choice, complete: Mapping[str, Result]) -> list[Result]:
    """Return the candidates that are drawn, until the first one that holds."""
    tried: list[Result] = []
    for candidate in choice.candidates:
        if (found := complete.get(candidate.point.key)) is None:
            break
        tried.append(found)
        if _holds(found, choice):
            break
    return tried


def _holds(result: Result, choice: Choice) -> bool:
    return not missed(result, choice.floors, sure=choice.sure)
