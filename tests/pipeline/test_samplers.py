"""Schedulers that requests choose: they draw as diffusers has them, and leave the next request alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cache_dit_serving.caching.settings import CacheSettings
from cache_dit_serving.config.schedulers import OfferedScheduler
from cache_dit_serving.config.settings import ModelSettings, RequestDefaults, Settings
from cache_dit_serving.engine.capabilities import capabilities_of
from cache_dit_serving.errors import InvalidRequest, LoadError
from cache_dit_serving.jobs.rates import Rates
from cache_dit_serving.pipeline.load import EMBEDDED_FOLDER
from cache_dit_serving.pipeline.protocol import Loaded
from cache_dit_serving.pipeline.samplers import Samplers
from cache_dit_serving.planning.plan import plan
from cache_dit_serving.planning.resolve import resolve
from cache_dit_serving.planning.samplers import SamplerChoice
from cache_dit_serving.schemas.request import GenerateRequest
from tests.support.families import build_pipeline
from tests.support.in_process import PIXART, STEPS, UNCACHED, draw, load, unwarmed
from tests.support.pipelines import save_pixart, small_vae

pytestmark = pytest.mark.slow

EMBEDDED_MODEL: dict[str, Any] = {"path": "embedded", "dtype": "float32", "cpu_threads": 1}
OFTEN_CACHED = CacheSettings(Fn_compute_blocks=1, max_warmup_steps=2, residual_diff_threshold=0.8)


def with_model(settings: Settings, **model: Any) -> Settings:
    return unwarmed(settings.model_copy(update={"model": ModelSettings.model_validate(model)}))


@pytest.fixture(scope="module")
def offering() -> Loaded:
    schedulers = {
        "euler": {},
        "heun": {},
        "unipc": {},
        "euler_karras": {},
        "noisy": {"config": {"stochastic_sampling": True}},
        "ddim": {},
    }
    return load(with_model(UNCACHED, **EMBEDDED_MODEL, schedulers=schedulers))


@pytest.fixture(scope="module")
def stable_diffusion(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    pipe, folder = build_pipeline("StableDiffusion3"), tmp_path_factory.mktemp("sd3")
    # Its entry's autoencoder gives the transformer a token for each pixel; this one for each 8 x 8.
    pipe.register_modules(vae=small_vae(shift_factor=0.06))
    pipe.save_pretrained(folder)
    settings = Settings(cache=OFTEN_CACHED, defaults=RequestDefaults(width=64, height=64))
    return load(with_model(settings, path=str(folder), dtype="float32", schedulers=["heun"]))


@pytest.fixture(scope="module")
def pixart(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    folder = save_pixart(tmp_path_factory.mktemp("pixart"))
    return load(with_model(PIXART, path=str(folder), dtype="float32", schedulers=["heun", "dpm2", "euler"]))


def refused(loaded: Loaded, **fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as refusal:
        plan(resolve(GenerateRequest.model_validate({"prompt": "a red apple"} | fields), loaded.model))
    return refusal.value


@pytest.mark.verified
def test_a_choice_changes_no_later_picture(offering: Loaded) -> None:
    chosen: list[dict[str, Any]] = [
        {"scheduler": "unipc"},
        {"scheduler": "euler_karras"},
        {"scheduler": "noisy"},
        {"scheduler": "unipc", "shift": 3.0},
        {"shift": 3.0},
    ]
    own = draw(offering).media.array
    first = [draw(offering, **fields).media.array for fields in chosen]
    for earlier, fields in zip(first, chosen, strict=True):
        assert not np.array_equal(earlier, own)
        assert np.array_equal(draw(offering, **fields).media.array, earlier)
        assert np.array_equal(draw(offering).media.array, own)


def test_a_stopped_drawing_leaves_no_scheduler_behind(offering: Loaded) -> None:
    def stop(done: int) -> None:
        if done == 3:
            raise InterruptedError

    own = draw(offering).media.array
    with pytest.raises(InterruptedError):
        draw(offering, stop, scheduler="unipc")
    assert np.array_equal(draw(offering).media.array, own)


def test_a_chosen_scheduler_draws_as_in_diffusers(offering: Loaded) -> None:
    import torch
    from diffusers import FluxPipeline, UniPCMultistepScheduler

    pipe = FluxPipeline.from_pretrained(EMBEDDED_FOLDER, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = UniPCMultistepScheduler.from_config(
        pipe.scheduler.config, use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=2.5
    )
    alone = pipe(
        "a red apple on a blue background",
        width=96,
        height=96,
        num_inference_steps=STEPS,
        max_sequence_length=32,
        generator=torch.Generator().manual_seed(3),
        output_type="np",
    ).images[0]
    assert np.array_equal(draw(offering, scheduler="unipc", shift=2.5).media.array, alone)


def test_the_models_own_shift_sent_by_a_request_changes_nothing(offering: Loaded) -> None:
    own = draw(offering).media.array
    assert np.array_equal(draw(offering, scheduler="euler", shift=1.5).media.array, own)
    assert np.array_equal(draw(offering, scheduler="auto").media.array, own)


def test_what_a_family_cannot_draw_with_is_refused_with_the_reason(offering: Loaded) -> None:
    error = refused(offering, scheduler="heun")
    assert error.param == "scheduler"
    assert "FlowMatchHeunDiscreteScheduler.set_timesteps takes no sigmas, which FluxPipeline passes" in error.message
    assert "it has: euler, unipc, euler_karras, noisy" in error.message
    assert "there is no ddim for flow-matching models" in refused(offering, scheduler="ddim").message
    assert "it has: euler" in refused(offering, scheduler="../unipc").message


def test_each_task_offers_what_its_pipeline_draws_with(offering: Loaded) -> None:
    offered = {each.traits.pipeline_class: each.traits.samplers for each in offering.model.variants}
    names = {name: list(samplers.by_name) for name, samplers in offered.items() if samplers is not None}
    assert "unipc" in names["FluxPipeline"]
    assert names["FluxImg2ImgPipeline"] == ["euler", "euler_karras", "noisy"]


def test_capabilities_list_the_schedulers_and_the_bounds_of_the_shift(offering: Loaded) -> None:
    fields = capabilities_of(offering, Rates()).fields
    assert fields["scheduler"]["enum"] == ["euler", "unipc", "euler_karras", "noisy"]
    assert fields["scheduler"]["default"] == "euler"
    assert (fields["shift"]["minimum"], fields["shift"]["maximum"], fields["shift"]["default"]) == (0.05, 20, 1.5)


def test_a_file_records_the_scheduler_that_drew(offering: Loaded) -> None:
    for fields in ({}, {"scheduler": "unipc", "shift": 3.0}):
        planned = plan(resolve(GenerateRequest.model_validate({"prompt": "a red apple"} | fields), offering.model))
        recorded = planned.parameters(planned.call)
        assert {name: recorded.get(name) for name in ("scheduler", "shift")} == {
            "scheduler": "euler",
            "shift": None,
        } | fields


def test_sigmas_go_with_schedulers_that_follow_them(offering: Loaded) -> None:
    sigmas = [1.0, 0.7, 0.4, 0.1]
    for scheduler in ("unipc", "euler_karras"):
        error = refused(offering, scheduler=scheduler, sigmas=sigmas)
        assert (error.param, "takes no sigmas" in error.message) == ("sigmas", True)
    assert draw(offering, sigmas=sigmas, num_inference_steps=4).record.cache.steps == 4


@pytest.mark.parametrize("guidance_scale", [1.0, 5.0])
def test_heuns_method_on_a_flow_is_counted_by_its_forward_passes(
    stable_diffusion: Loaded, guidance_scale: float
) -> None:
    done: list[int] = []
    image = draw(stable_diffusion, done.append, scheduler="heun", num_inference_steps=10, guidance_scale=guidance_scale)
    report = image.record.cache
    assert done == list(range(1, 20))
    assert (report.steps, report.executed_steps, report.redrawn) == (19, 19, 0)
    assert report.cached_steps > 0
    assert image.record.cached_steps_s is not None


def test_heuns_method_is_counted_after_a_strength_too(stable_diffusion: Loaded) -> None:
    from cache_dit_serving.planning.example import example_of
    from cache_dit_serving.planning.tasks import Task
    from tests.support.in_process import Watch

    sibling = next(each for each in stable_diffusion.model.variants if Task.IMG2IMG in each.traits.tasks)
    fields: dict[str, Any] = {"scheduler": "heun", "num_inference_steps": 10, "strength": 0.6}
    request, inputs = example_of(sibling, Task.IMG2IMG, **fields)
    call = plan(resolve(request, stable_diffusion.model), inputs).fitted().call
    done: list[int] = []
    report = stable_diffusion.runner.sample(call, Watch(done.append)).record.cache
    assert (len(done), report.steps, report.executed_steps, report.redrawn) == (11, 11, 11, 0)


@pytest.mark.parametrize(("scheduler", "steps"), [("heun", 19), ("dpm2", 19), ("euler", 10)])
def test_steps_of_a_noise_predicting_model_are_counted_by_its_forward_passes(
    pixart: Loaded, scheduler: str, steps: int
) -> None:
    own = draw(pixart, num_inference_steps=6).media.array
    done: list[int] = []
    report = draw(pixart, done.append, scheduler=scheduler, num_inference_steps=10).record.cache
    assert done == list(range(1, steps + 1))
    assert (report.steps, report.executed_steps, report.redrawn) == (steps, steps, 0)
    assert np.array_equal(draw(pixart, num_inference_steps=6).media.array, own)


def test_a_scheduler_whose_noise_the_pipeline_does_not_scale_is_refused() -> None:
    traits = Samplers(build_pipeline("DiT"), {"euler": OfferedScheduler(), "ddim": OfferedScheduler()}).traits
    assert traits is not None
    assert traits.refused == {"euler": "EulerDiscreteScheduler needs its noise scaled, which DiTPipeline does not do"}
    assert [*traits.by_name] == ["ddim"]


@pytest.mark.parametrize(
    ("offered", "words"),
    [
        ({"scheduler_class": "EulerScheduler"}, "scheduler_class: diffusers .* has no scheduler class of this name"),
        ({"scheduler_class": "DDIMScheduler", "config": {"shift": 3.0}}, r"config\.shift: DDIMScheduler has no such"),
    ],
)
def test_a_scheduler_that_diffusers_does_not_have_stops_the_start(offered: dict[str, Any], words: str) -> None:
    with pytest.raises(LoadError, match=rf"model\.schedulers\.mine\.{words}"):
        Samplers(build_pipeline("DiT"), {"mine": OfferedScheduler.model_validate(offered)})


def test_offered_schedulers_are_names_or_a_mapping() -> None:
    listed = ModelSettings.model_validate({"schedulers": ["euler", "unipc"]}).schedulers
    assert listed == ModelSettings.model_validate({"schedulers": "euler, unipc"}).schedulers
    assert listed == {"euler": OfferedScheduler(), "unipc": OfferedScheduler()}
    for wrong, words in ((["unipcc"], "did you mean unipc"), (["default"], "give another name")):
        with pytest.raises(ValueError, match=words):
            ModelSettings.model_validate({"schedulers": wrong})


def test_saved_own_scheduler_without_a_known_name_is_the_default(tmp_path: Path) -> None:
    pipe = build_pipeline("StableDiffusion3")
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, stochastic_sampling=True)
    traits = Samplers(pipe, {}).traits
    assert traits is not None
    assert (traits.own.name, traits.own.takes_shift) == ("default", False)


def test_a_shift_that_follows_the_size_is_replaced_where_the_scheduler_can() -> None:
    pipe = build_pipeline("Flux")
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, use_dynamic_shifting=True)
    offered = {name: OfferedScheduler() for name in ("euler", "unipc", "dpmpp_2m")}
    samplers = Samplers(pipe, offered)
    assert samplers.traits is not None
    by_name = samplers.traits.by_name
    assert {name: sampler.takes_shift for name, sampler in by_name.items()} == {
        "euler": True,
        "unipc": True,
        "dpmpp_2m": False,  # diffusers 0.42 fails with a static shift on a pipeline that passes one for the size
    }
    assert {sampler.shift for sampler in by_name.values()} == {None}
    with samplers.used(SamplerChoice("euler", 3.0)):
        assert (pipe.scheduler.config.shift, pipe.scheduler.config.use_dynamic_shifting) == (3.0, False)
    assert pipe.scheduler.config.use_dynamic_shifting
