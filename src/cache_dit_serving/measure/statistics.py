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
LEAST_FOR_MEANS = 8
"""Independent values of a sample from which its mean can differ from another's."""
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
    """Median, other quantile or mean of a sample `b` against that of a sample `a`."""

    a: float
    b: float
    change: float
    """`b` minus `a`, in the samples' unit."""
    ratio: float | None
    """`b` over `a`; None if `a` is not above 0."""
    low: float | None
    """Low end of the ratio's confidence interval; None if that of `a` holds 0."""
    high: float | None
    p_value: float
    """Probability of a difference as great between samples of one source."""
    real: bool
    """True if the interval excludes equality and the probability is small."""
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
    q: float = 0.5,
    *,
    in_order: bool = False,
    confidence: float = CONFIDENCE,
    seed: int = SEED,
) -> Difference:
    """Return the difference of two samples' medians, or of another quantile `q`, and if it is real.

    A difference is real if the bootstrap interval of the quantiles' ratio excludes 1 and the quantile test gives a
    probability of at most 1 - `confidence`. (Read as the interval of their difference, which excludes 0 just then if
    both are above 0.) The test keeps samples of two or three values from ever being called different, for which a
    bootstrap is too sure.

    Raises:
        ValueError: a sample has no value, or one is not a number.
    """
    sample_a, sample_b = _sample(a), _sample(b)
    rng = np.random.default_rng(seed)
    drawn_a = _quantiles_of_resamples(sample_a, q, in_order, rng)
    drawn_b = _quantiles_of_resamples(sample_b, q, in_order, rng)
    tested = (_thinned(sample_a, q), _thinned(sample_b, q)) if in_order else (sample_a, sample_b)
    values = float(np.quantile(sample_a, q)), float(np.quantile(sample_b, q))
    counts = len(sample_a), len(sample_b)
    return _difference(values, (drawn_a, drawn_b), counts, quantile_test(*tested, q), confidence)


def difference_of_means(
    a: Sequence[float] | Floats,
    b: Sequence[float] | Floats,
    *,
    in_order: bool = False,
    confidence: float = CONFIDENCE,
    seed: int = SEED,
) -> Difference:
    """Return the difference of two samples' means, and if it is real.

    Its probability is that of the bootstrap, so samples that are worth fewer than :data:`LEAST_FOR_MEANS` independent
    values never differ.

    Raises:
        ValueError: a sample has no value, or one is not a number.
    """
    sample_a, sample_b = _sample(a), _sample(b)
    sizes = [_independent(each) if in_order else len(each) for each in (sample_a, sample_b)]
    rng = np.random.default_rng(seed)
    drawn_a, drawn_b = _means_of_resamples(sample_a, sizes[0], rng), _means_of_resamples(sample_b, sizes[1], rng)
    tails = (drawn_b <= drawn_a).mean(), (drawn_b >= drawn_a).mean()
    p_value = min(1.0, 2 * max(float(min(tails)), 1 / RESAMPLES)) if min(sizes) >= LEAST_FOR_MEANS else 1.0
    values = float(sample_a.mean()), float(sample_b.mean())
    return _difference(values, (drawn_a, drawn_b), (len(sample_a), len(sample_b)), p_value, confidence)


def _difference(
    values: tuple[float, float],
    drawn: tuple[Floats, Floats],
    counts: tuple[int, int],
    p_value: float,
    confidence: float,
) -> Difference:
    low, high = np.quantile(drawn[1] - drawn[0], _tails(confidence))
    ends: list[float | None] = [None, None]
    if (drawn[0] > 0).all():
        ends = [float(end) for end in np.quantile(drawn[1] / drawn[0], _tails(confidence))]
    return Difference(
        a=values[0],
        b=values[1],
        change=values[1] - values[0],
        ratio=values[1] / values[0] if values[0] > 0 else None,
        low=ends[0],
        high=ends[1],
        p_value=p_value,
        # Without a margin for rounding, 1 - 0.95 would lie above 0.05.
        real=bool((low > 0 or high < 0) and p_value <= 1 - confidence + 1e-12),
        count_a=counts[0],
        count_b=counts[1],
    )


def quantile_test(a: Sequence[float] | Floats, b: Sequence[float] | Floats, q: float = 0.5) -> float:
    """Return the two-sided probability of a quantile test, exactly; at `q` 0.5 the median test (Brown and Mood 1951).

    It is a permutation test whose statistic is the number of values of `a` above the quantile of all. Values equal to
    that count as above if it brings the number above closer to 1 - `q` of all.
    """
    sample_a, sample_b = _sample(a), _sample(b)
    together = np.concatenate([sample_a, sample_b])
    limit = np.quantile(together, q)
    above = min((np.greater, np.greater_equal), key=lambda test: abs(test(together, limit).mean() - (1 - q)))
    hits_a, hits_b = int(above(sample_a, limit).sum()), int(above(sample_b, limit).sum())
    return share_test(hits_a, len(sample_a), hits_b, len(sample_b))


def share_test(hits_a: int, count_a: int, hits_b: int, count_b: int) -> float:
    """Return the two-sided probability of Fisher's exact test for two shares.

    If the labels `a` and `b` are exchangeable, the number of hits in `a` is hypergeometric.
    """
    hits, total = hits_a + hits_b, count_a + count_b
    least, most = max(0, count_a + hits - total), min(count_a, hits)
    logs = np.array([_log_ways(hits, k) + _log_ways(total - hits, count_a - k) for k in range(least, most + 1)])
    chances = np.exp(logs - _log_ways(total, count_a))
    # As unlikely as the one seen, or more; the margin is for rounding.
    return float(min(1.0, chances[chances <= chances[hits_a - least] * (1 + 1e-9)].sum()))


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


def _thinned(sample: Floats, q: float) -> Floats:
    """Keep each value that is about independent of the one before."""
    return sample[:: math.ceil(len(sample) / _worth(sample, q, True))]


def _log_ways(total: int, chosen: int) -> float:
    return math.lgamma(total + 1) - math.lgamma(chosen + 1) - math.lgamma(total - chosen + 1)
