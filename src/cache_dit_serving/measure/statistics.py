"""Estimates with confidence intervals by bootstrap, and the comparison of two samples.

Quantiles are of type 7 of Hyndman and Fan (1996): linear between the two nearest order statistics, as numpy's default.
Their intervals are percentile intervals of the bootstrap, because BCa needs a jackknife, which is inconsistent for
quantiles. Means have BCa intervals (Efron 1987), which follow a skewed sample.

A bootstrap takes values for independent. Latencies of one queue are not: a slow request delays those behind it. With
`in_order=True` a sample counts as the number of independent values that it is worth, by its autocorrelation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

CONFIDENCE = 0.95
RESAMPLES = 4000
"""Resamples of a bootstrap."""
SEED = 20261128
"""Seed of the resamples: the same values give the same interval."""
_CHUNK = 1 << 21
"""Values of the resamples that are held at once."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Statistic of a sample with its confidence interval."""

    value: float
    low: float
    high: float
    count: int
    """Number of values in the sample."""
    bounded: bool = True
    """False if the sample is too small for this quantile: the true one may lie outside of all values."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Median of a sample `b` against that of a sample `a`."""

    a: float
    b: float
    change: float
    """`b` minus `a`, in the samples' unit."""
    ratio: float | None
    """`b` over `a`; None if `a` is not above 0."""
    low: float | None
    """Low end of the ratio's confidence interval."""
    high: float | None
    p_value: float
    """Probability of a difference as great between samples of one source, by the median test."""
    real: bool
    """True if the interval excludes equality and the median test agrees."""
    count_a: int
    count_b: int


def quantile(
    values: Sequence[float] | Floats,
    q: float,
    *,
    in_order: bool = False,
    confidence: float = CONFIDENCE,
    seed: int = SEED,
) -> Estimate:
    """Return a quantile with its confidence interval.

    Args:
        q: 0 to 1; 0.99 is the 99th percentile.
        in_order: the values stand in the order of their measurement and may depend on the ones before.

    Raises:
        ValueError: there is no value, or one is not a number.
    """
    sample = _sample(values)
    drawn = _quantiles_of_resamples(sample, q, in_order, np.random.default_rng(seed))
    low, high = np.quantile(drawn, _tails(confidence))
    tail = (1 - confidence) / 2
    worth = _worth(sample, q, in_order)
    return Estimate(float(np.quantile(sample, q)), float(low), float(high), len(sample), max(q, 1 - q) ** worth <= tail)


def median(
    values: Sequence[float] | Floats, *, in_order: bool = False, confidence: float = CONFIDENCE, seed: int = SEED
) -> Estimate:
    """Return the median with its confidence interval. See :func:`quantile`."""
    return quantile(values, 0.5, in_order=in_order, confidence=confidence, seed=seed)


def mean(
    values: Sequence[float] | Floats, *, in_order: bool = False, confidence: float = CONFIDENCE, seed: int = SEED
) -> Estimate:
    """Return the mean with its BCa confidence interval.

    Raises:
        ValueError: there is no value, or one is not a number.
    """
    sample = _sample(values)
    value = float(sample.mean())
    away = sample - value
    spread = float((away**2).sum())
    if spread == 0:
        return Estimate(value, value, value, len(sample), len(sample) > 1)
    size = _independent(sample) if in_order else len(sample)
    drawn = _means_of_resamples(sample, size, np.random.default_rng(seed))
    normal = NormalDist()
    below = float((drawn < value).mean() + (drawn == value).mean() / 2)
    bias = normal.inv_cdf(min(max(below, 1 / len(drawn)), 1 - 1 / len(drawn)))
    # The jackknife of a mean in closed form, for as many values as the sample is worth.
    skewness = float((away**3).mean()) / (spread / len(sample)) ** 1.5
    acceleration = skewness / (6 * math.sqrt(size))

    def adjusted(tail: float) -> float:
        z = bias + normal.inv_cdf(tail)
        return normal.cdf(bias + z / (1 - acceleration * z))

    low, high = np.quantile(drawn, [adjusted(tail) for tail in _tails(confidence)])
    return Estimate(value, float(low), float(high), len(sample))


def difference(
    a: Sequence[float] | Floats,
    b: Sequence[float] | Floats,
    *,
    in_order: bool = False,
    confidence: float = CONFIDENCE,
    seed: int = SEED,
) -> Difference:
    """Return the difference of two samples' medians, and if it is real.

    A difference is real if the bootstrap interval of the ratio of medians excludes 1 and the median test gives a
    probability of at most 1 - `confidence`. (Read as the interval of the medians' difference, which excludes 0 just
    then if both are above 0.) The test keeps samples of two or three values from ever being called different, for
    which a bootstrap is too sure.

    Raises:
        ValueError: a sample has no value, or one is not a number.
    """
    sample_a, sample_b = _sample(a), _sample(b)
    rng = np.random.default_rng(seed)
    medians_a = _quantiles_of_resamples(sample_a, 0.5, in_order, rng)
    medians_b = _quantiles_of_resamples(sample_b, 0.5, in_order, rng)
    low, high = np.quantile(medians_b - medians_a, _tails(confidence))
    p_value = median_test(_thinned(sample_a), _thinned(sample_b)) if in_order else median_test(sample_a, sample_b)
    value_a, value_b = float(np.median(sample_a)), float(np.median(sample_b))
    ends: list[float | None] = [None, None]
    if (medians_a > 0).all():
        ends = [float(end) for end in np.quantile(medians_b / medians_a, _tails(confidence))]
    return Difference(
        a=value_a,
        b=value_b,
        change=value_b - value_a,
        ratio=value_b / value_a if value_a > 0 else None,
        low=ends[0],
        high=ends[1],
        p_value=p_value,
        real=bool((low > 0 or high < 0) and p_value <= 1 - confidence),
        count_a=len(sample_a),
        count_b=len(sample_b),
    )


def median_test(a: Sequence[float] | Floats, b: Sequence[float] | Floats) -> float:
    """Return the two-sided probability of the median test of Brown and Mood (1951), exactly.

    It is a permutation test whose statistic is the number of values of `a` above the median of all: if the labels are
    exchangeable, that number is hypergeometric.
    """
    sample_a, sample_b = _sample(a), _sample(b)
    together = np.concatenate([sample_a, sample_b])
    middle = np.median(together)
    above, seen = int((together > middle).sum()), int((sample_a > middle).sum())
    size, total = len(sample_a), len(together)
    least, most = max(0, size + above - total), min(size, above)
    logs = np.array([_log_ways(above, k) + _log_ways(total - above, size - k) for k in range(least, most + 1)])
    chances = np.exp(logs - _log_ways(total, size))
    # As unlikely as the one seen, or more; the margin is for rounding.
    return float(min(1.0, chances[chances <= chances[seen - least] * (1 + 1e-9)].sum()))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return probabilities adjusted for their number (Holm 1979).

    Of many comparisons without a difference some have a small probability by chance.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    adjusted = [0.0] * len(p_values)
    greatest = 0.0
    for rank, index in enumerate(order):
        greatest = max(greatest, min(1.0, p_values[index] * (len(order) - rank)))
        adjusted[index] = greatest
    return adjusted


def _sample(values: Sequence[float] | Floats) -> Floats:
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or not len(sample):
        raise ValueError("a sample needs at least one value")
    if not np.isfinite(sample).all():
        raise ValueError("a sample has a value that is not a finite number")
    return sample


def _tails(confidence: float) -> tuple[float, float]:
    return (1 - confidence) / 2, (1 + confidence) / 2


def _quantiles_of_resamples(sample: Floats, q: float, in_order: bool, rng: np.random.Generator) -> Floats:
    """Draw a quantile of each resample, without making the resamples.

    The k-th of n sorted places, drawn with replacement, is that of the k-th of n sorted uniform numbers, which is
    Beta(k, n + 1 - k); the next one is the least of the n - k numbers above it. So a resample costs two numbers.
    """
    ranked, size = np.sort(sample), _worth(sample, q, in_order)
    position = q * (size - 1)
    k = int(position) + 1
    lower = rng.beta(k, size + 1 - k, RESAMPLES)
    upper = lower + (1 - lower) * rng.beta(1, size - k, RESAMPLES) if k < size else lower
    at = [ranked[np.minimum((place * len(ranked)).astype(int), len(ranked) - 1)] for place in (lower, upper)]
    drawn: Floats = at[0] + (position - int(position)) * (at[1] - at[0])
    return drawn


def _means_of_resamples(sample: Floats, size: int, rng: np.random.Generator) -> Floats:
    rows = max(1, _CHUNK // size)
    chunks = [min(rows, RESAMPLES - start) for start in range(0, RESAMPLES, rows)]
    return np.concatenate([sample[rng.integers(0, len(sample), (chunk, size))].mean(axis=1) for chunk in chunks])


def _worth(sample: Floats, q: float, in_order: bool) -> int:
    """Return the number of independent values that a sample is worth for a quantile.

    The autocorrelation that counts is that of the event below the quantile (Heidelberger and Lewis 1984).
    """
    return _independent((sample <= np.quantile(sample, q)).astype(np.float64)) if in_order else len(sample)


def _independent(series: Floats) -> int:
    """Return the length of a series over its autocorrelation time, at least 1."""
    count = len(series)
    away = series - series.mean()
    if count < 4 or not away.any():
        return count
    spectrum = np.fft.rfft(away, 2 * count)
    correlation = np.fft.irfft(spectrum * np.conj(spectrum))[:count]
    correlation /= correlation[0]
    # Geyer's initial positive sequence (1992): sums of neighbours, up to the first that noise makes negative.
    pairs = correlation[: count // 2 * 2].reshape(-1, 2).sum(axis=1)
    end = int(np.argmax(pairs <= 0)) if (pairs <= 0).any() else len(pairs)
    time = max(1.0, 2 * float(pairs[:end].sum()) - 1)
    return max(1, min(count, round(count / time)))


def _thinned(sample: Floats) -> Floats:
    """Keep each value that is about independent of the one before."""
    return sample[:: math.ceil(len(sample) / _worth(sample, 0.5, True))]


def _log_ways(total: int, chosen: int) -> float:
    return math.lgamma(total + 1) - math.lgamma(chosen + 1) - math.lgamma(total - chosen + 1)
