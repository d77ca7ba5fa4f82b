"""Figures of a point, from requests whose times are known."""

from __future__ import annotations

import numpy as np
import pytest

from cache_dit_serving.measure.load.arrival import Closed, Open, arrivals
from cache_dit_serving.measure.load.outcome import Outcome
from cache_dit_serving.measure.load.results import PointResult, completion_gaps, point_result, stage_times


def _outcome(intended: float, ended: float, **fields: object) -> Outcome:
    told = {"kind": "", "intended": intended, "sent": intended, "ended": ended, "outputs": 1, **fields}
    return Outcome.model_validate(told)


def _point(load: Closed | Open, outcomes: list[Outcome]) -> PointResult:
    return point_result(load, outcomes, client_cpu=0.1, held_back=False)


def _one_lane(users: int, requests: int, service_s: float) -> list[Outcome]:
    """Users at a server that draws one request at a time."""
    ends = [service_s * (number + 1) for number in range(requests)]
    return [_outcome(ends[number - users] if number >= users else 0.0, end) for number, end in enumerate(ends)]


@pytest.mark.parametrize("users", [1, 4])
def test_users_at_one_lane_get_its_rate_and_wait_for_each_other(users: int) -> None:
    point = _point(Closed(users), _one_lane(users, 100, 0.5))
    assert point.throughput is not None
    assert point.throughput.value == pytest.approx(2)
    assert point.latency["p50"].value == pytest.approx(0.5 * users)
    assert point.offered_rate is None


def test_users_at_as_many_lanes_share_no_wait() -> None:
    rounds = [_outcome(0.5 * number, 0.5 * (number + 1)) for number in range(20) for _ in range(4)]
    point = _point(Closed(4), rounds)
    assert point.throughput is not None
    assert point.throughput.value == pytest.approx(8)
    assert point.latency["p99"].value == pytest.approx(0.5)


def test_the_end_of_a_point_where_the_load_fades_does_not_lower_the_rate() -> None:
    slow_last = [*_one_lane(2, 50, 0.1), _outcome(4.9, 60.0)]
    assert sum(completion_gaps(slow_last)) < 5.1


def test_a_rate_above_capacity_shows_as_offered_against_achieved() -> None:
    outcomes = [_outcome(0.1 * number, 0.2 * (number + 1)) for number in range(1, 101)]
    point = _point(Open(10), outcomes)
    assert point.offered_rate == pytest.approx(10)
    assert point.achieved_rate == pytest.approx(5, rel=0.05)


def test_several_outputs_of_a_request_count_each() -> None:
    outcomes = [_outcome(0.5 * number, 0.5 * (number + 1), outputs=4) for number in range(20)]
    point = _point(Closed(1), outcomes)
    assert point.outputs == 80
    assert point.throughput is not None
    assert point.throughput.value == pytest.approx(8)


def test_stages_add_up_to_the_latency() -> None:
    outcome = _outcome(1.0, 3.0, sent=1.25, stages={"queue": 0.5, "denoise": 1.0})
    assert stage_times(outcome) == {"client_wait": 0.25, "queue": 0.5, "denoise": 1.0, "rest": 0.25}
    point = _point(Closed(1), [outcome])
    assert sum(stage.value for stage in point.stages.values()) == pytest.approx(point.latency["mean"].value)


def test_errors_are_told_apart_and_have_no_latency() -> None:
    busy = {"error": "429 queue_full", "message": "busy", "outputs": 0}
    outcomes = [
        _outcome(0, 1),
        _outcome(1, 1.01, **busy, retry_after_s=2),
        _outcome(1, 1.02, **busy, retry_after_s=5),
        _outcome(2, 9, error="timeout", outputs=0),
    ]
    point = _point(Closed(1), outcomes)
    assert [(error.kind, error.count, error.message) for error in point.errors] == [
        ("429 queue_full", 2, "busy"),
        ("timeout", 1, None),
    ]
    assert point.retry_after is not None
    assert (point.retry_after.count, point.retry_after.least_s, point.retry_after.most_s) == (2, 2, 5)
    assert point.latency["p99"].value == 1
    assert (point.requests, point.succeeded) == (4, 1)


def test_a_point_of_errors_alone_has_figures() -> None:
    point = _point(Open(1), [_outcome(0.5, 1, error="500", outputs=0)])
    assert (point.succeeded, point.throughput, point.latency, point.stages) == (0, None, {}, {})


def test_steps_and_reused_steps_are_summed() -> None:
    point = _point(Closed(1), [_outcome(0, 1, steps=20, cached_steps=5), _outcome(1, 2, steps=20, cached_steps=9)])
    assert (point.steps, point.cached_steps) == (40, 14)


def test_arrivals_are_a_poisson_process_that_repeats() -> None:
    source = arrivals(4.0, seed=1)
    times = np.array([next(source) for _ in range(20_000)])
    gaps = np.diff(times)
    assert gaps.mean() == pytest.approx(0.25, rel=0.03)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.03), "exponential gaps spread as much as their mean"
    counts = np.histogram(times, bins=np.arange(0, times[-1], 1.0))[0]
    assert counts.var() == pytest.approx(counts.mean(), rel=0.1)
    again = arrivals(4.0, seed=1)
    assert [next(again) for _ in range(5)] == times[:5].tolist()
