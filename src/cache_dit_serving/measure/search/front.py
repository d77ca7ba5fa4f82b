"""The front of time against distance: dominance, and points that have no hope to reach it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cache_dit_serving.measure.distances.table import Measure
from cache_dit_serving.measure.search.samples import Result
from cache_dit_serving.measure.statistics import mean, median


def front(results: Iterable[Result], measure: Measure) -> list[Result]:
    """Return the results that no other one beats in both time and distance, fastest first."""
    ranked = sorted(results, key=lambda result: (result.median_ratio, result.mean_loss(measure)))
    kept: list[Result] = []
    for result in ranked:
        if not kept or result.mean_loss(measure) < kept[-1].mean_loss(measure):
            kept.append(result)
    return kept


def hopeless(result: Result, rivals: Iterable[Result], measure: Measure, *, after: int) -> Result | None:
    """Return a rival that is faster and closer beyond doubt, on the cases that both have; None if there is none.

    Beyond doubt: the 95 % intervals of both paired differences exclude equality.

    Args:
        after: cases that the result must have before anything is said of it.
    """
    if len(result.samples) < after:
        return None
    return next((rival for rival in rivals if _dominates(rival, result, measure)), None)


def faster(result: Result, other: Result) -> bool:
    """Return True if a result is faster than another one beyond doubt, on the cases that both have."""
    cases = [case for case in result.samples if case in other.samples]
    return bool(cases) and median([other.samples[case].ratio - result.samples[case].ratio for case in cases]).low > 0


def _dominates(rival: Result, result: Result, measure: Measure) -> bool:
    cases = [case for case in result.samples if case in rival.samples]
    if not cases or rival.point == result.point:
        return False
    slower, farther = _paired(rival, result, cases, measure)
    if min(sum(slower), sum(farther)) <= 0:  # spares the resamples of most rivals
        return False
    return median(slower).low > 0 and mean(farther).low > 0


def _paired(rival: Result, result: Result, cases: Sequence[int], measure: Measure) -> tuple[list[float], list[float]]:
    """Return by how much the result is slower and farther than the rival, on each case."""
    slower = [result.samples[case].ratio - rival.samples[case].ratio for case in cases]
    farther = [
        measure.loss(result.samples[case].distances[measure.name])
        - measure.loss(rival.samples[case].distances[measure.name])
        for case in cases
    ]
    return slower, farther
