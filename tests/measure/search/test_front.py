"""The front of time against distance, points without hope, and the curve of fewer steps."""

from __future__ import annotations

import pytest

from cache_dit_serving.measure.search.fewer_steps import FewerSteps
from cache_dit_serving.measure.search.front import front, hopeless
from cache_dit_serving.measure.search.measures import FLIP
from cache_dit_serving.measure.search.points import Point
from tests.support.searches import point_of, result_of
from tests.support.synthetic import STEPS


def test_the_front_holds_what_nothing_beats_in_both() -> None:
    points = [point_of(threshold) for threshold in (0.1, 0.2, 0.3, 0.4)]
    numbers = [(0.5, 0.1), (0.4, 0.2), (0.45, 0.3), (0.3, 0.4)]
    results = [result_of(point, pair) for point, pair in zip(points, numbers, strict=True)]
    assert [result.point for result in front(results, FLIP)] == [points[3], points[1], points[0]]


def test_a_point_is_hopeless_once_a_rival_is_faster_and_closer_beyond_doubt() -> None:
    result = result_of(point_of(0.1), (0.5, 0.3), (0.52, 0.31), (0.51, 0.29))
    better = result_of(point_of(0.2), (0.4, 0.2), (0.42, 0.21), (0.41, 0.19), (0.4, 0.2))
    closer_alone = result_of(point_of(0.3), (0.6, 0.2), (0.62, 0.21), (0.61, 0.19))
    in_doubt = result_of(point_of(0.4), (0.4, 0.2), (0.42, 0.35), (0.41, 0.2))
    assert hopeless(result, [closer_alone, in_doubt], FLIP, after=3) is None
    assert hopeless(result, [closer_alone, better], FLIP, after=3) == better
    assert hopeless(result, [better], FLIP, after=4) is None, "too few cases to say so"


def test_fewer_steps_are_a_curve_that_a_point_beats_or_loses_to() -> None:
    uncached = [result_of(Point(10), *[(0.5, 0.2)] * 3), result_of(Point(5), *[(0.25, 0.4)] * 3)]
    curve = FewerSteps(uncached, FLIP, steps=STEPS)
    assert [each for corner in curve.points() for each in corner] == pytest.approx([0.25, 0.4, 0.5, 0.2, 1.0, 0.0])
    better = curve.verdict(result_of(point_of(0.1), *[(0.375, 0.25)] * 3))
    assert better.outcome == "beats"
    assert better.closer.value == pytest.approx(0.05)
    assert better.time_saved == pytest.approx(1 - 0.375 / 0.4375)
    assert curve.verdict(result_of(point_of(0.1), *[(0.375, 0.35)] * 3)).outcome == "loses"
    assert curve.verdict(result_of(point_of(0.1), (0.375, 0.2), (0.375, 0.4), (0.375, 0.3))).outcome == "even"
    worse = curve.verdict(result_of(point_of(0.1), *[(0.6, 0.35)] * 3))
    assert (worse.outcome, worse.rival) == ("loses", Point(10))
    beyond = curve.verdict(result_of(point_of(0.1), *[(0.2, 0.5)] * 3))
    assert (beyond.outcome, beyond.time_saved) == ("even", None), "no uncached run is as fast"
