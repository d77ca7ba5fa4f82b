"""Estimates and comparisons of samples whose source is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cache_dit_serving.measure.statistics import (
    difference,
    difference_of_means,
    holm,
    mean,
    median,
    quantile,
    quantile_test,
    share_test,
)


def test_a_quantile_is_linear_between_the_two_nearest_values() -> None:
    assert quantile([1, 2, 3, 4], 0.5).value == 2.5
    assert quantile([10, 0], 0.9).value == pytest.approx(9)
    assert quantile([5.0], 0.99).value == 5


def test_the_same_values_give_the_same_interval() -> None:
    values = np.random.default_rng(1).exponential(1, 50)
    assert quantile(values, 0.9) == quantile(values, 0.9)
    assert mean(values) == mean(values)


def test_the_interval_of_a_quantile_is_that_of_real_resamples() -> None:
    """The shortcut by order statistics against resamples that are made one by one."""
    rng = np.random.default_rng(2)
    values = rng.gamma(2, 1, 30)
    made = np.quantile(values[rng.integers(0, 30, (40_000, 30))], 0.9, axis=1)
    low, high = np.quantile(made, (0.025, 0.975))
    estimate = quantile(values, 0.9)
    assert [estimate.low, estimate.high] == pytest.approx([low, high], rel=0.03)


@pytest.mark.parametrize(
    ("statistic", "truth"),
    [("median", math.log(2)), ("p90", math.log(10)), ("mean", 1.0)],
)
def test_an_interval_of_95_percent_covers_the_truth_about_95_times_in_100(statistic: str, truth: float) -> None:
    rng = np.random.default_rng(3)
    estimates = {"median": median, "p90": lambda values: quantile(values, 0.9), "mean": mean}
    found = [estimates[statistic](rng.exponential(1, 60)) for _ in range(300)]
    assert 0.90 <= np.mean([one.low <= truth <= one.high for one in found]) <= 0.98


def _correlated(rng: np.random.Generator, count: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """A series each of whose values keeps 0.9 of the one before, with mean 10."""
    noise = rng.normal(0, math.sqrt(1 - 0.81), count)
    series = np.zeros(count)
    for index in range(1, count):
        series[index] = 0.9 * series[index - 1] + noise[index]
    return 10 + series


def test_values_that_depend_on_the_ones_before_widen_the_interval() -> None:
    rng = np.random.default_rng(4)
    covered: dict[bool, list[bool]] = {True: [], False: []}
    for _ in range(100):
        values = _correlated(rng, 400)
        for in_order, hits in covered.items():
            estimate = median(values, in_order=in_order)
            hits.append(estimate.low <= 10 <= estimate.high)
    assert np.mean(covered[False]) < 0.6, "the plain bootstrap is too sure"
    assert np.mean(covered[True]) >= 0.85


def test_two_samples_of_one_source_seldom_differ() -> None:
    rng = np.random.default_rng(5)
    real = [difference(rng.lognormal(0, 0.3, 40), rng.lognormal(0, 0.3, 40)).real for _ in range(300)]
    assert np.mean(real) <= 0.06
    ordered = [difference(_correlated(rng, 300), _correlated(rng, 300), in_order=True).real for _ in range(60)]
    assert np.mean(ordered) <= 0.1


def test_a_fifth_more_is_found_and_its_ratio_is_in_the_interval() -> None:
    rng = np.random.default_rng(6)
    found = difference(rng.lognormal(0, 0.1, 100), 1.2 * rng.lognormal(0, 0.1, 100))
    assert found.real
    assert found.low is not None
    assert found.high is not None
    assert found.low < 1.2 < found.high
    assert found.p_value < 0.001


def test_three_values_are_too_few_for_a_difference() -> None:
    found = difference([1.0, 1.01, 1.02], [2.0, 2.01, 2.02])
    assert not found.real
    assert found.p_value == pytest.approx(0.1)
    assert difference([1.0, 1.01, 1.02, 1.03], [2.0, 2.01, 2.02, 2.03]).real


def test_a_median_of_zero_has_a_change_and_no_ratio() -> None:
    found = difference([0.0] * 20, [1.0] * 20)
    assert (found.ratio, found.low, found.high, found.change, found.real) == (None, None, None, 1.0, True)


def test_equal_values_do_not_differ() -> None:
    assert quantile_test([1, 1, 1], [1, 1, 1]) == 1
    assert not difference([1.0] * 10, [1.0] * 10).real


def test_the_99th_percentile_of_few_values_is_not_bounded() -> None:
    values = list(range(400))
    assert quantile(values, 0.99).bounded
    assert not quantile(values[:300], 0.99).bounded
    assert median(values[:6]).bounded
    assert not median(values[:5]).bounded


def test_a_longer_tail_shows_in_the_90th_percentile_alone() -> None:
    rng = np.random.default_rng(7)
    plain = rng.normal(1, 0.1, 200)
    tailed = np.where(rng.random(200) < 0.2, 3, rng.normal(1, 0.1, 200))
    assert not difference(plain, tailed).real
    assert difference(plain, tailed, 0.9).real


def test_means_differ_from_eight_values_on() -> None:
    assert not difference_of_means([1.0, 1.1] * 3, [2.0, 2.1] * 3).real
    found = difference_of_means([1.0, 1.1] * 4, [2.0, 2.1] * 4)
    assert found.real
    assert found.ratio == pytest.approx(2.05 / 1.05)


def test_the_probability_of_two_shares_is_fishers() -> None:
    assert share_test(1, 10, 11, 14) == pytest.approx(0.002759456, rel=1e-6)  # the textbook's table
    assert share_test(0, 10, 0, 10) == 1


def test_many_comparisons_are_adjusted_for_their_number() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []


@pytest.mark.parametrize("values", [[], [math.nan], [1.0, math.inf]])
def test_a_sample_without_finite_values_is_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="a sample"):
        median(values)
