"""Summary of the samples of one series: quantiles of each measure, the speed-up, the newest and the worst outputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cache_dit_serving.measure.distances.table import MEASURES, Measure
from cache_dit_serving.measure.evidence.samples import Sample, Series, in_order
from cache_dit_serving.measure.search.samples import WORST
from cache_dit_serving.measure.statistics import CONFIDENCE, Estimate, median

CASES = 5
"""Greatest number of newest outputs, and of worst ones."""


@dataclass(frozen=True)
class Quantiles:
    """Values of a measure over the samples that have one. Each quantile is the value of a sample."""

    count: int
    """Samples with a value, and broken outputs, which count as worse than any value."""
    worst_decile: float | None
    """Value that a tenth of the outputs are worse than. None: that tenth begins at a broken output."""
    median: float | None
    """None: half of the outputs are broken."""
    best_decile: float | None
    """None: nine in ten outputs are broken."""
    worst_decile_bound: float | None
    """Value that at most a tenth of all outputs are worse than, not only of those measured, with a confidence of
    95 %. None: there are fewer than 29 samples, or the bound is a broken output."""


@dataclass(frozen=True)
class Summary:
    """Summary of the samples of one series."""

    series: Series
    count: int
    broken: int
    """Outputs with values that are not finite."""
    quantiles: dict[str, Quantiles]
    """Quantiles by measure, in the order of reports."""
    speedup: Estimate
    """Median of the uncached seconds over the cached ones, with its 95 % interval."""
    cached_steps: float
    """Mean number of steps that reused blocks."""
    newest: tuple[Sample, ...]
    """Newest samples, at most `CASES`, newest first."""
    worst: tuple[Sample, ...]
    """Samples with the greatest loss of the chosen measure, at most `CASES`, worst first; of equal ones the newest."""


def summary(samples: Sequence[Sample], measure: Measure) -> Summary:
    """Return the summary of samples.

    Args:
        samples: of one series, in any order.
        measure: measure by which the worst cases are chosen.

    Raises:
        ValueError: there is no sample, or they are of several series.
    """
    kinds = {sample.series for sample in samples}
    if len(kinds) != 1:
        raise ValueError("a summary needs samples of one series")
    newest = in_order(samples)[::-1]
    known = {name for sample in samples for name in sample.values}
    return Summary(
        series=kinds.pop(),
        count=len(samples),
        broken=sum(sample.broken for sample in samples),
        quantiles={name: _quantiles(row, newest) for name, row in MEASURES.items() if name in known},
        speedup=median([sample.speedup for sample in newest]),
        cached_steps=sum(sample.cached_steps for sample in samples) / len(samples),
        newest=tuple(newest[:CASES]),
        worst=tuple(_worst(measure, newest)),
    )


def _worst(measure: Measure, newest: Sequence[Sample]) -> list[Sample]:
    losses = {index: loss for index, sample in enumerate(newest) if (loss := sample.loss(measure)) is not None}
    return [newest[index] for index in sorted(losses, key=lambda index: -losses[index])[:CASES]]


def _quantiles(measure: Measure, samples: Sequence[Sample]) -> Quantiles:
    losses = sorted(loss for sample in samples if (loss := sample.loss(measure)) is not None)
    rank = bound_rank(len(losses))
    return Quantiles(
        count=len(losses),
        worst_decile=_value(measure, losses[_rank(1 - WORST, len(losses)) - 1]),
        median=_value(measure, losses[_rank(0.5, len(losses)) - 1]),
        best_decile=_value(measure, losses[_rank(WORST, len(losses)) - 1]),
        worst_decile_bound=None if rank is None else _value(measure, losses[rank - 1]),
    )


def _rank(q: float, count: int) -> int:
    """Return the rank of a quantile: the least one with a share of at least `q` at or below it.

    It is type 1 of Hyndman and Fan (1996), an order statistic, so that a broken output is never averaged.
    """
    return max(1, math.ceil(q * count - 1e-9))


def _value(measure: Measure, loss: float) -> float | None:
    return measure.value(loss) if math.isfinite(loss) else None


def bound_rank(count: int, *, worst: float = WORST, confidence: float = CONFIDENCE) -> int | None:
    """Return the rank of the loss that bounds the worst decile of all outputs; None if the sample is too small.

    The r-th of n sorted losses is at least the decile of all outputs unless r or more of the n lie below it, whose
    number is binomial with probability 1 - `worst`, whatever the distribution (David and Nagaraja 2003, "Order
    Statistics", section 7.1). The least such r is taken: at 95 % there is one from 29 losses on.
    """
    chance = 0.0
    for below in range(count):
        ways = math.lgamma(count + 1) - math.lgamma(below + 1) - math.lgamma(count - below + 1)
        chance += math.exp(ways + below * math.log(1 - worst) + (count - below) * math.log(worst))
        if chance >= confidence:
            return below + 1
    return None
