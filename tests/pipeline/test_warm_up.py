"""The generations before ready: few steps, or whole pictures where their rates are wanted, and how far they are."""

from __future__ import annotations

import pytest
from diffusers import FluxInpaintPipeline

from cache_dit_serving.caching.speed_settings import SpeedsSettings
from cache_dit_serving.config.reading import load_settings
from cache_dit_serving.engine.capabilities import capabilities_of
from cache_dit_serving.errors import InvalidRequest
from cache_dit_serving.jobs.rates import Rates
from cache_dit_serving.pipeline import warm_up
from cache_dit_serving.pipeline.assemble import assemble
from cache_dit_serving.pipeline.protocol import Sampled, Watch
from cache_dit_serving.pipeline.runner import PipelineRunner
from cache_dit_serving.planning.call import ImageCall
from cache_dit_serving.planning.tasks import Task
from tests.support.in_process import EMBEDDED, draw, load


def warmed_up(**variables: str) -> tuple[list[tuple[str, int]], list[str]]:
    """Speed and steps of each picture of the warm-up, and what was reported meanwhile."""
    reports: list[str] = []
    loaded = assemble(load_settings({f"CACHE_DIT_SERVING__{key}": v for key, v in variables.items()}), reports.append)
    pictures = [(call.cache.speed, call.num_inference_steps) for call, _ in loaded.warm_up]
    return pictures, [report for report in reports if report.startswith("warming up")]


@pytest.mark.verified
def test_one_picture_of_few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warm_up, "REPORT_PROGRESS_S", 0.0)
    pictures, reports = warmed_up(SPEEDS__WARM_UP="false")
    assert pictures == [("lossless", 4)]
    assert reports[:5] == [
        "warming up with one picture (4 steps)",
        *(f"warming up with one picture (4 steps), step {step} of 4" for step in (1, 2, 3, 4)),
    ]


def test_each_further_task_is_tried_in_few_steps() -> None:
    reports: list[str] = []
    loaded = assemble(EMBEDDED, reports.append)
    stages = [report for report in reports if report.startswith("warming up") and "step " not in report]
    assert stages[-2:] == [f"warming up with one picture ({task}, 4 steps)" for task in ("img2img", "inpaint")]
    assert loaded.model.tasks == [Task.IMG2IMG, Task.INPAINT, Task.TEXT_TO_IMAGE]


def test_a_task_that_fails_is_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise ValueError("not on these weights")

    monkeypatch.setattr(FluxInpaintPipeline, "prepare_mask_latents", fail)
    loaded = load(EMBEDDED)
    assert loaded.model.tasks == [Task.IMG2IMG, Task.TEXT_TO_IMAGE]
    with pytest.raises(InvalidRequest, match=r"does not take mask_url; its tasks are: img2img, text-to-image"):
        draw(loaded, image_urls=["a picture"], mask_url="a mask")


@pytest.mark.verified
def test_a_whole_picture_at_each_speed_where_their_rates_are_wanted() -> None:
    pictures, reports = warmed_up()
    assert pictures == [("balanced", 28), ("lossless", 28), ("high", 28), ("fast", 10)]
    assert reports[1] == "warming up with one picture (speed lossless, 2 of 4)"


@pytest.mark.verified
def test_speeds_that_differ_by_their_steps_alone_are_each_drawn_and_described() -> None:
    assert EMBEDDED.cache is not None
    same = {"cache": EMBEDDED.cache.model_dump(exclude_unset=True), "num_inference_steps": 6}
    speeds = SpeedsSettings.model_validate({"default": "fast", "warm_up": True, "fast": same})
    loaded = load(EMBEDDED.model_copy(update={"speeds": speeds}))
    pictures = [(record.cache.speed, call.num_inference_steps) for call, record in loaded.warm_up]
    assert pictures == [("fast", 6), ("lossless", 28), ("high", 28), ("balanced", 28)]
    rates = Rates()
    for call, record in loaded.warm_up:
        rates.learn(call, record)
    described = {each.name: each for each in capabilities_of(loaded, rates).speeds}
    assert described["balanced"].settings_hash == described["fast"].settings_hash
    assert [name for name, each in described.items() if each.default] == ["fast"]
    assert [each.num_inference_steps for each in described.values()] == [28, 28, 28, 6]
    times = {name: each.seconds for name, each in described.items() if each.seconds is not None}
    assert times["fast"] < times["balanced"]


def test_no_picture_where_the_configuration_skips_it() -> None:
    assert warmed_up(SPEEDS__WARM_UP="false", SERVER__WARM_UP="false") == ([], [])


def sides_drawn(monkeypatch: pytest.MonkeyPatch, *, fails_below: int = 0) -> list[int]:
    """The width of each picture that a load draws, in order; those narrower than `fails_below` fail."""
    sample, sides = PipelineRunner.sample, []

    def sampling(self: PipelineRunner, call: ImageCall, watch: Watch) -> Sampled:
        sides.append(call.arguments["width"])
        if sides[-1] < fails_below:
            raise ValueError("too small")
        return sample(self, call, watch)

    monkeypatch.setattr(warm_up, "TRIAL_PIXELS", 80 * 80)
    monkeypatch.setattr(PipelineRunner, "sample", sampling)
    assert load(EMBEDDED).model.speeds.default is not None
    return sides


def test_the_cache_is_tried_at_a_small_size_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sides_drawn(monkeypatch)[:3] == [80, 80, 96]


def test_a_cache_that_fails_at_a_small_size_is_tried_at_the_default_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sides_drawn(monkeypatch, fails_below=96)[:5] == [80, 96, 80, 96, 96]
