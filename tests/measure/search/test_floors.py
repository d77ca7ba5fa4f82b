"""Floors: how they are given, the bound that holds them, and the candidates of each speed."""

from __future__ import annotations

import numpy as np
import pytest

from cache_dit_serving.errors import ConfigError
from cache_dit_serving.measure.distances.table import Measure
from cache_dit_serving.measure.search.fewer_steps import FewerSteps
from cache_dit_serving.measure.search.floors import Floors, choose, floors_of, in_values, missed
from cache_dit_serving.measure.search.measures import FLIP, PSNR, SSIM
from cache_dit_serving.measure.search.points import Point
from cache_dit_serving.measure.search.samples import Result, Sample, tolerance_factor
from cache_dit_serving.media.values import MediaKind
from tests.support.searches import point_of, result_of, spread
from tests.support.synthetic import STEPS


def test_a_point_that_does_not_lose_is_preferred_to_a_faster_one_that_does_whatever_its_steps() -> None:
    uncached = [result_of(Point(10), *[(0.5, 0.2)] * 3), result_of(Point(5), *[(0.25, 0.4)] * 3)]
    losing, even = result_of(point_of(0.3), *[(0.4, 0.36)] * 3), result_of(point_of(0.2, 12), *[(0.45, 0.2)] * 3)
    curve = FewerSteps(uncached, FLIP, steps=STEPS)
    floors: Floors = {speed: {"flip": 0.37} for speed in ("high", "balanced", "fast")}
    assert [choice.candidates for choice in choose([losing, even], floors, curve)] == [[even]] * 3
    assert [choice.candidates for choice in choose([losing], floors, curve)] == [[losing]] * 3


def test_each_further_candidate_held_its_floor_with_more_confidence() -> None:
    curve = FewerSteps([spread(Point(10), 0.9, 0.9)], FLIP, steps=STEPS)
    near, far = spread(point_of(0.3), 0.4, 0.08), spread(point_of(0.2), 0.5, 0.05)
    floors: Floors = {speed: {"flip": 0.1} for speed in ("high", "balanced", "fast")}
    assert missed(near, {"flip": 0.1}, sure=0.8) == []
    assert missed(near, {"flip": 0.1}, sure=0.99) == ["flip"]
    high = choose([near, far], floors, curve)[0]
    assert high.candidates[0] == near
    assert high.candidates[-1] == far
    assert high.sure == pytest.approx(0.9), "two tries share the chance of an error"


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([], {"high": {"steps": 0.75}, "balanced": {"steps": 0.5}, "fast": {"steps": 1 / 3}}),
        (
            ["ssim=.95"],
            {"high": {"steps": 0.75, "ssim": 0.95}, "balanced": {"steps": 0.5, "ssim": 0.95}, "fast": {"ssim": 0.95}},
        ),
        (["steps=.6"], {"high": {"steps": 0.75}, "balanced": {"steps": 0.6}, "fast": {"steps": 0.6}}),
        (
            ["flip=.05", "high:flip=.02"],
            {"high": {"flip": 0.02}, "balanced": {"steps": 0.5, "flip": 0.05}, "fast": {"flip": 0.05}},
        ),
        (
            ["ssim=.95", "psnr_db=30", "fast:ssim=.9"],
            {
                "high": {"steps": 0.75, "ssim": 0.95, "psnr_db": 30},
                "balanced": {"steps": 0.5, "ssim": 0.95, "psnr_db": 30},
                "fast": {"ssim": 0.9, "psnr_db": 30},
            },
        ),
    ],
)
def test_floors_hold_for_all_speeds_or_for_one(texts: list[str], expected: dict[str, dict[str, float]]) -> None:
    assert floors_of(texts, MediaKind.IMAGE) == expected


@pytest.mark.parametrize(
    "text",
    ["ssim", "likeness=.9", "ssim=much", "quick:ssim=.9", "lossless:ssim=.9", "snr_db=30", "steps=2", "ssim=inf"],
)
def test_a_floor_that_cannot_be_read_is_refused_with_the_form(text: str) -> None:
    with pytest.raises(ConfigError, match="--floor"):
        floors_of([text], MediaKind.IMAGE)


def test_a_floor_by_steps_is_the_worst_decile_of_that_uncached_run() -> None:
    runs = [spread(Point(15), 0.75, 0.02), spread(Point(10), 0.5, 0.05), spread(Point(7), 0.35, 0.1)]
    found = in_values(floors_of([], MediaKind.IMAGE), runs, FLIP, steps=STEPS)
    assert found == {
        speed: {"flip": run.worst(FLIP).value} for speed, run in zip(("high", "balanced", "fast"), runs, strict=True)
    }
    stricter = in_values({"fast": {"steps": 0.5, "flip": 0.01}}, runs, FLIP, steps=STEPS)
    assert stricter == {"fast": {"flip": 0.01}}


def test_a_floor_is_held_in_the_direction_of_its_measure() -> None:
    result = Result(point_of(0.1), {case: Sample(0.5, 1.0, {"ssim": 0.96, "flip": 0.04}) for case in range(3)})
    assert missed(result, {"ssim": 0.95, "flip": 0.05}, sure=0.8) == []
    assert missed(result, {"ssim": 0.97, "flip": 0.03}, sure=0.8) == ["ssim", "flip"]


@pytest.mark.parametrize(
    ("count", "sure", "published"), [(2, 0.9, 10.253), (8, 0.95, 2.582), (16, 0.9, 1.842), (30, 0.99, 2.030)]
)
def test_tolerance_factors_are_those_of_the_tables(count: int, sure: float, published: float) -> None:
    """One-sided factors for normal values and nine in ten of them (Natrella 1963, table A-7; Owen 1963)."""
    assert tolerance_factor(count, sure) == pytest.approx(published, rel=0.02)


@pytest.mark.parametrize(("measure", "equal"), [(FLIP, 0.0), (SSIM, 1.0), (PSNR, None)])
def test_the_bound_on_the_worst_decile_holds_for_outputs_that_were_not_measured(
    measure: Measure, equal: float | None
) -> None:
    rng = np.random.default_rng(5)
    held = 0
    for _ in range(200):
        drawn = rng.normal(30, 3, 2008) if equal is None else np.abs(equal - rng.lognormal(-4, 0.5, 2008))
        values = [float(value) for value in drawn]
        samples = {case: Sample(0.5, 0.5, {measure.name: value}) for case, value in enumerate(values[:8])}
        bound = Result(point_of(0.1), samples).worst_bound(measure)
        held += sum(measure.loss(value) > bound for value in values[8:]) <= 200
    assert held >= 0.8 * 200 - 15
