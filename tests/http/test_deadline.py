"""Which speed a deadline gets, from rates that are given: no clock, no machine."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

from cache_dit_serving.caching.checks import CacheSupport
from cache_dit_serving.caching.speeds import SPEEDS, SpeedLadder
from cache_dit_serving.config.settings import Settings
from cache_dit_serving.engine.deadline import MARGIN, plan_within_deadline
from cache_dit_serving.errors import DeadlineExceeded, InvalidRequest
from cache_dit_serving.jobs.rates import Rates
from cache_dit_serving.planning.model import PlannedModel
from cache_dit_serving.planning.plan import plan
from cache_dit_serving.planning.planned import Planned
from cache_dit_serving.planning.resolve import resolve
from cache_dit_serving.schemas.answers import DeadlineReport
from cache_dit_serving.schemas.request import GenerateRequest
from tests.support.answers import error, metric
from tests.support.clients import leave
from tests.support.jobs import LONG
from tests.support.records import record_of
from tests.support.server import Server
from tests.support.traits import FLUX

REUSED = {"lossless": 0, "high": 8, "balanced": 14, "fast": 18}
# FIXED_S + computed and reused steps of tests.support.records at 20 steps.
SECONDS = {"lossless": 2.5, "high": 1.86, "balanced": 1.38, "fast": 1.06}


class Stub:
    """A runner without a pipeline: it only plans."""

    def __init__(self, **sections: Any) -> None:
        cache = {"Fn_compute_blocks": 1, "residual_diff_threshold": 0.2, "max_warmup_steps": 2}
        self.settings = Settings.model_validate({"cache": cache, "defaults": {"num_inference_steps": 20}} | sections)
        settings = self.settings
        speeds = SpeedLadder(settings.cache, settings.speeds, CacheSupport({"T.blocks": 12}, {}), 20)
        self.model = PlannedModel(FLUX, settings.defaults, settings.limits, speeds)

    def plan(self, request: GenerateRequest) -> Planned:
        return plan(resolve(request, self.model))

    def rates(self, *speeds: str) -> Rates:
        rates = Rates()
        for speed in speeds or SPEEDS:
            call = self.plan(GenerateRequest.model_validate({"prompt": "a cat", "speed": speed})).call
            rates.learn(call, record_of(call, REUSED[speed]))
        return rates


def chosen(
    runner: Stub, deadline_s: float, rates: Rates | None = None, queue_s: float = 0.0, **fields: Any
) -> DeadlineReport:
    request = GenerateRequest.model_validate({"prompt": "a cat", "deadline_s": deadline_s} | fields)
    call, report = plan_within_deadline(resolve(request, runner.model), rates or runner.rates(), queue_s)
    assert report is not None
    assert call.cache.speed == report.speed
    return report


@pytest.mark.parametrize("speed", SPEEDS)
def test_the_least_approximation_that_fits_is_taken(speed: str) -> None:
    just_enough = SECONDS[speed] * MARGIN + 0.01
    assert chosen(Stub(), just_enough).speed == speed
    assert chosen(Stub(), just_enough).estimate_s == pytest.approx(SECONDS[speed] * MARGIN, abs=0.01)


def test_of_speeds_with_the_same_settings_the_one_of_fewer_steps_is_faster() -> None:
    settings = {"Fn_compute_blocks": 1, "residual_diff_threshold": 0.2, "max_warmup_steps": 2}
    runner = Stub(speeds={"fast": {"cache": settings, "num_inference_steps": 10}, "default": "fast"})
    rates = Rates()
    for speed, reused in {"lossless": 0, "high": 8, "balanced": 14, "fast": 6}.items():
        call = runner.plan(GenerateRequest.model_validate({"prompt": "a cat", "speed": speed})).call
        rates.learn(call, record_of(call, reused))
    fast_s = 0.5 + 4 * 0.1 + 6 * 0.02
    assert chosen(runner, SECONDS["balanced"] * MARGIN + 0.01, rates).speed == "balanced"
    fitting = chosen(runner, fast_s * MARGIN + 0.01, rates)
    assert fitting.speed == "fast"
    assert fitting.estimate_s == pytest.approx(fast_s * MARGIN)
    usual = runner.plan(GenerateRequest.model_validate({"prompt": "a cat"}))
    assert (usual.cache.speed, usual.call.num_inference_steps) == ("fast", 10)


def test_the_queue_counts() -> None:
    report = chosen(Stub(), SECONDS["lossless"] * MARGIN + 0.01, queue_s=1.0)
    assert report.speed == "balanced"
    assert report.queue_s == pytest.approx(1.0 * MARGIN)


def test_several_images_take_several_times_as_long() -> None:
    assert chosen(Stub(), SECONDS["fast"] * 3 * MARGIN + 0.01, num_images=3).speed == "fast"


def test_the_ceiling_holds() -> None:
    limited = Stub(speeds={"ceiling": "high", "default": "lossless"})
    with pytest.raises(DeadlineExceeded) as raised:
        chosen(limited, 1.5, limited.rates("lossless", "high"))
    assert raised.value.details["deadline"]["speed"] == "high"


def test_what_has_not_run_promises_nothing_and_is_named() -> None:
    with pytest.raises(DeadlineExceeded, match="not run here yet: high, fast") as raised:
        chosen(Stub(), 0.5, Stub().rates("lossless", "balanced"))
    assert raised.value.code == "deadline_unattainable"
    assert raised.value.details["deadline"]["speed"] == "balanced"
    with pytest.raises(DeadlineExceeded) as raised:
        chosen(Stub(), 100, Rates())
    assert raised.value.details["deadline"] is None


def test_a_speed_or_settings_of_the_request_are_all_that_is_tried() -> None:
    assert chosen(Stub(), 60, speed="fast").speed == "fast"
    assert chosen(Stub(), 60, cache={"max_cached_steps": 3}).speed == "custom"
    with pytest.raises(DeadlineExceeded):
        chosen(Stub(), SECONDS["high"], speed="lossless")


def test_a_speed_that_does_not_go_with_the_request_is_passed_over() -> None:
    masked = {"Fn_compute_blocks": 1, "steps_computation_mask": "fast"}
    runner = Stub(speeds={"high": {"cache": masked}})
    assert chosen(runner, 60, num_inference_steps=5).speed == "lossless"
    five_steps = {speed: 0.5 + 5 * 0.1 for speed in ("lossless", "balanced", "fast")}
    with pytest.raises(DeadlineExceeded):
        chosen(runner, five_steps["lossless"] * 0.5, num_inference_steps=5)
    with pytest.raises(InvalidRequest):
        chosen(runner, 60, num_inference_steps=500)


def test_a_deadline_is_met_without_approximation_where_there_is_time(server: Server) -> None:
    answer = server.generate(seed=1, deadline_s=600).json()
    assert (answer["deadline"]["speed"], answer["cache"]["speed"]) == ("lossless", "lossless")
    assert answer["deadline"]["estimate_s"] < answer["deadline"]["deadline_s"] == 600
    assert answer["images"] == server.generate(seed=1, speed="lossless").json()["images"]


def test_a_deadline_that_nothing_meets_is_refused_at_once_with_the_best_there_is(server: Server) -> None:
    refused_before = metric(server, "cache_dit_serving_deadlines_total", outcome="refused")
    drawn_before = metric(server, "cache_dit_serving_images_total")
    response = server.generate(deadline_s=0.001)
    assert metric(server, "cache_dit_serving_images_total") == drawn_before
    refused = error(response, 504)
    assert (refused["code"], refused["param"]) == ("deadline_unattainable", "deadline_s")
    best = response.json()["deadline"]
    assert best["estimate_s"] > 0.001
    assert best["speed"] in refused["message"]
    assert metric(server, "cache_dit_serving_deadlines_total", outcome="refused") == refused_before + 1


def test_a_deadline_counts_the_queue(server: Server) -> None:
    with contextlib.closing(leave(server, **LONG)):
        server.wait_for(lambda running: running.get("/health").json()["queue"]["step"] > 0)
        response = server.generate(deadline_s=1.0)
    assert error(response, 504)["code"] == "deadline_unattainable"
    assert response.json()["deadline"]["queue_s"] > 1
    assert int(response.headers["Retry-After"]) >= 1


def test_a_client_that_left_is_not_waited_for(server: Server) -> None:
    stopped = metric(server, "cache_dit_serving_generations_total", outcome="cancelled")
    with contextlib.closing(leave(server, **LONG)):
        server.wait_for(lambda running: running.get("/health").json()["queue"]["step"] > 0)
        full = server.generate(deadline_s=0.001).json()["deadline"]["queue_s"]
    server.wait_for(lambda running: running.generate(deadline_s=0.001).json()["deadline"]["queue_s"] < full / 4)
    server.wait_until_idle()
    assert metric(server, "cache_dit_serving_generations_total", outcome="cancelled") == stopped + 1


def test_a_deadline_with_a_speed_only_checks_it(server: Server) -> None:
    answer = server.generate(seed=1, deadline_s=600, speed="fast").json()
    assert answer["deadline"]["speed"] == answer["cache"]["speed"] == "fast"
    custom = server.generate(seed=1, deadline_s=600, cache={"max_cached_steps": 2}).json()
    assert (custom["deadline"]["speed"], custom["cache"]["cached_steps"]) == ("custom", 2)
