"""The summary of a series' samples."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from cache_dit_serving.measure.distances.table import MEASURES
from cache_dit_serving.measure.evidence.samples import Sample
from cache_dit_serving.measure.evidence.summary import CASES, bound_rank, summary
from tests.support.evidence import sample

SSIM = MEASURES["ssim"]


def of_ssim(*values: float) -> list[Sample]:
    """Return samples of these values, a second apart."""
    return [sample(number, values={"ssim": value}) for number, value in enumerate(values)]


def test_quantiles_go_from_worst_to_best_whichever_way_is_better() -> None:
    steps = [number / 100 for number in range(1, 101)]
    samples = [sample(number, values={"ssim": 1 - x, "flip": x}) for number, x in enumerate(steps)]
    found = summary(samples, SSIM)
    assert list(found.quantiles) == ["ssim", "flip"]
    flip, ssim = found.quantiles["flip"], found.quantiles["ssim"]
    assert (flip.worst_decile, flip.median, flip.best_decile) == (0.9, 0.5, 0.1)
    assert (ssim.worst_decile, ssim.median, ssim.best_decile) == pytest.approx((0.1, 0.5, 0.9))
    assert flip.worst_decile_bound == 0.96
    assert ssim.worst_decile_bound == pytest.approx(0.04)


def test_the_worst_decile_has_a_bound_from_29_samples_on() -> None:
    assert summary(of_ssim(*[0.9] * 28), SSIM).quantiles["ssim"].worst_decile_bound is None
    assert summary(of_ssim(*[0.9] * 28, 0.7), SSIM).quantiles["ssim"].worst_decile_bound == 0.7
    assert bound_rank(29, confidence=0.99) is None
    assert bound_rank(0) is None


@pytest.mark.parametrize("count", [29, 100, 1000])
def test_the_bound_holds_as_often_as_it_says(count: int) -> None:
    rank = bound_rank(count)
    assert rank is not None
    losses = np.sort(np.random.default_rng(1).random((2000, count)), axis=1)
    held = (losses[:, rank - 1] >= 0.9).mean()
    assert held >= 0.95 - 2.6 * (0.05 * 0.95 / 2000) ** 0.5
    assert (losses[:, rank - 2] >= 0.9).mean() < 0.95 + 2.6 * (0.05 * 0.95 / 2000) ** 0.5


def test_a_great_sample_has_a_bound() -> None:
    assert bound_rank(20_000) == pytest.approx(18_000 + 1.645 * 1800**0.5, abs=3)


def test_broken_outputs_are_worse_than_any_value() -> None:
    samples = [*of_ssim(*[0.9] * 8), sample(8, broken=True), sample(9, broken=True)]
    found = summary(samples, SSIM)
    assert (found.count, found.broken) == (10, 2)
    assert found.quantiles["ssim"].count == 10
    assert found.quantiles["ssim"].worst_decile is None
    assert found.quantiles["ssim"].median == 0.9
    assert [each.request for each in found.worst[:3]] == ["r9", "r8", "r7"]


def test_the_newest_and_the_worst_outputs_are_few() -> None:
    found = summary(of_ssim(0.9, 0.5, 0.95, 0.6, 0.7, 0.95, 0.8, 0.9), SSIM)
    assert [each.request for each in found.newest] == ["r7", "r6", "r5", "r4", "r3"]
    assert [each.values["ssim"] for each in found.worst] == [0.5, 0.6, 0.7, 0.8, 0.9]
    assert found.worst[-1].request == "r7"
    assert len(found.worst) == CASES


def test_a_measure_that_few_samples_have_counts_those() -> None:
    found = summary([*of_ssim(0.9, 0.8), sample(2, values={"psnr_db": 30.0})], SSIM)
    assert found.quantiles["ssim"].count == 2
    assert found.quantiles["psnr_db"].count == 1
    assert len(found.worst) == 2


def test_the_speed_up_is_a_median_with_an_interval() -> None:
    samples = [sample(number, speedup=1.5 + number / 100, cached_steps=number % 2) for number in range(101)]
    found = summary(samples, SSIM)
    assert found.speedup.value == pytest.approx(2.0)
    assert 1.8 < found.speedup.low < 2.0 < found.speedup.high < 2.2
    assert found.cached_steps == pytest.approx(50 / 101)
    assert found.quantiles == {}
    assert found.worst == ()


def test_the_order_of_samples_does_not_matter() -> None:
    samples = of_ssim(*np.random.default_rng(1).random(40).tolist())
    assert summary(samples, SSIM) == summary(samples[::-1], SSIM)


def test_samples_of_several_series_have_no_summary() -> None:
    one = sample(0)
    for change in ({"speed": "high"}, {"settings_hash": "b"}, {"steps": 20}, {"environment": "e2"}):
        with pytest.raises(ValueError, match="one series"):
            summary([one, dataclasses.replace(one, **change)], SSIM)
    with pytest.raises(ValueError, match="one series"):
        summary([], SSIM)
