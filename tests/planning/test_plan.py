"""From a request to a call: what each field becomes, and what is refused by name."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

from cache_dit_serving.caching.checks import CacheSupport
from cache_dit_serving.caching.settings import CacheSettings
from cache_dit_serving.caching.speeds import SpeedLadder
from cache_dit_serving.config.settings import Limits, RequestDefaults, Settings
from cache_dit_serving.errors import InvalidRequest, LoadError
from cache_dit_serving.media.inputs import InputImage, Inputs
from cache_dit_serving.media.provenance import DigitalSource
from cache_dit_serving.planning.call import VideoSpec
from cache_dit_serving.planning.inputs import input_arguments
from cache_dit_serving.planning.model import PlannedModel
from cache_dit_serving.planning.model import planned as planned_model
from cache_dit_serving.planning.planned import Planned
from cache_dit_serving.planning.samplers import Sampler, SamplerChoice, SamplerTraits
from cache_dit_serving.planning.tasks import EDITING_TASKS, SERVED_TASKS, Input, Task
from cache_dit_serving.planning.traits import PipelineTraits
from cache_dit_serving.schemas.request import MAX_SEED
from tests.support.planned import planned, request
from tests.support.traits import DISTILLED, FLUX, KREA_LIKE, QWEN, WAN, WAN_LIKE


def seeds(result: Planned) -> list[int]:
    return [call.seed for call in result.calls]


def test_what_is_left_out_takes_the_defaults_of_the_configuration_then_the_pipelines() -> None:
    settings = Settings(
        defaults=RequestDefaults(
            width=512, guidance_scale=3.5, max_sequence_length=64, pipeline_arguments={"max_area": 4, "clip_skip": 1}
        )
    )
    result = planned(request(), FLUX, settings)
    assert result.call.arguments == {
        "prompt": "a cat",
        "width": 512,
        "height": 1024,
        "num_inference_steps": 28,
        "guidance_scale": 3.5,
        "max_sequence_length": 64,
        "clip_skip": 1,
    }
    extra = planned(request(max_sequence_length=32, extra_args={"clip_skip": 2}), FLUX, settings)
    assert (extra.call.arguments["max_sequence_length"], extra.call.arguments["clip_skip"]) == (32, 2)
    assert extra.parameters(extra.call)["extra_args"] == {"clip_skip": 2}


def test_a_speed_with_steps_of_its_own_decides_where_the_request_names_none() -> None:
    fast = {"num_inference_steps": 8}
    settings = Settings.model_validate(
        {"cache": {}, "speeds": {"fast": fast}, "limits": {"max_num_inference_steps": 50}}
    )
    asked = [request(), request(speed="fast"), request(speed="fast", num_inference_steps=12), request(speed="lossless")]
    assert [planned(each, FLUX, settings).call.num_inference_steps for each in asked] == [28, 8, 12, 28]
    assert planned_model(settings, FLUX, CacheSupport({"T.blocks": 12}, {}), ()).default_step_count == 28
    fast["num_inference_steps"] = 51
    settings = Settings.model_validate(
        {"cache": {}, "speeds": {"fast": fast}, "limits": {"max_num_inference_steps": 50}}
    )
    with pytest.raises(LoadError, match=r"speeds\.fast\.num_inference_steps: 51 steps .* 50"):
        planned_model(settings, FLUX, CacheSupport({"T.blocks": 12}, {}), ())


@pytest.mark.parametrize("where", ["floors", "fast.floors"])
def test_a_floor_by_a_measure_of_another_kind_fails_the_load(where: str) -> None:
    speeds: dict[str, Any] = {"ssim": 0.9, "snr_db": 30}
    for key in reversed(where.split(".")):
        speeds = {key: speeds}
    settings = Settings.model_validate({"cache": {}, "speeds": speeds})
    words = rf"speeds\.{where}\.snr_db: FluxPipeline makes .* image, .* flip, ssim, psnr_db"
    with pytest.raises(LoadError, match=words):
        planned_model(settings, FLUX, CacheSupport({"T.blocks": 12}, {}), ())


def test_an_output_is_edited_where_its_task_changes_a_picture_or_video_of_the_request() -> None:
    assert planned(request(), FLUX, Settings()).output.source is DigitalSource.GENERATED
    traits = replace(FLUX, tasks=frozenset({Task.IMG2IMG}), brought={Input.IMAGE: "image"})
    inputs = Inputs(images=(InputImage(Image.new("RGB", (64, 64)), "digest"),))
    edited = planned(request(image_urls=["one"]), traits, Settings(), inputs=inputs)
    assert edited.output.source is DigitalSource.EDITED
    only_guided = {Task.CONTROL, Task.VIDEO_CONTROL}
    from_words = {Task.TEXT_TO_IMAGE, Task.TEXT_TO_VIDEO, Task.TEXT_TO_AUDIO, Task.CLASS_CONDITIONAL}
    assert only_guided | from_words == SERVED_TASKS - EDITING_TASKS


def test_images_take_consecutive_seeds() -> None:
    assert seeds(planned(request(seed=5, num_images=3), FLUX, Settings())) == [5, 6, 7]


def test_a_seed_is_drawn_when_none_is_given() -> None:
    assert seeds(planned(request(), FLUX, Settings())) != seeds(planned(request(), FLUX, Settings()))


def test_sigmas_decide_the_number_of_steps() -> None:
    result = planned(request(sigmas=[1.0, 0.6, 0.2]), FLUX, Settings())
    assert result.call.num_inference_steps == 3
    assert result.call.arguments["sigmas"] == [1.0, 0.6, 0.2]


@pytest.mark.parametrize(
    ("traits", "fields", "separate"),
    [
        (FLUX, {}, False),
        (FLUX, {"true_cfg_scale": 3.0, "negative_prompt": "blur"}, True),
        (FLUX, {"true_cfg_scale": 1.0}, False),
        (QWEN, {}, False),
        (QWEN, {"negative_prompt": " "}, True),
        (QWEN, {"negative_prompt": "blur", "true_cfg_scale": 3.0}, True),
        (KREA_LIKE, {"guidance_scale": 0.8}, True),
        (KREA_LIKE, {"guidance_scale": 0.0}, False),
        (DISTILLED, {"guidance_scale": 4.0}, False),
        (WAN_LIKE, {}, True),
        (WAN_LIKE, {"guidance_scale": 5.0}, True),
        (WAN_LIKE, {"guidance_scale": 1.0}, False),
    ],
)
def test_the_cache_pairs_passes_only_where_guidance_makes_two(
    traits: PipelineTraits, fields: dict[str, Any], separate: bool
) -> None:
    assert planned(request(**fields), traits, Settings()).call.passes == (2 if separate else 1)


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"prompt": "  "}, "prompt", "empty"),
        ({"prompt": "x" * 10_001}, "prompt", "at most 10,000"),
        ({"width": 63}, "width", "multiples of 16 from 64 to 4096"),
        ({"width": 97}, "width", "multiples of 16"),
        ({"height": 100_000}, "height", "multiples of 16"),
        ({"num_inference_steps": 1_000_000}, "num_inference_steps", "more than the 200"),
        ({"num_images": 1000}, "num_images", "at most 10"),
        ({"num_images": 8, "num_inference_steps": 100}, "num_images", "at most 419,430,400"),
        ({"seed": MAX_SEED, "num_images": 2}, "seed", "must not pass"),
        ({"negative_prompt": "blur"}, "negative_prompt", "true_cfg_scale above 1"),
        ({"true_cfg_scale": 3.0}, "true_cfg_scale", "negative_prompt"),
        ({"true_cfg_scale": 0.5}, "true_cfg_scale", "no effect"),
        ({"sigmas": [1.0, 0.5], "num_inference_steps": 3}, "num_inference_steps", "agree"),
        ({"sigmas": [0.5, 1.0]}, "sigmas", "decrease"),
        ({"sigmas": [1e308]}, "sigmas", "at most at 1"),
        ({"sigmas": [1.0, 0.0]}, "sigmas", "above 0"),
        ({"image_quality": 80}, "image_quality", "lossless"),
        ({"output_dir": "a"}, "output_dir", "path"),
        ({"output_dir": "../a", "output_format": "path"}, "output_dir", "relative"),
        ({"output_dir": "/tmp", "output_format": "path"}, "output_dir", "relative"),
        ({"output_dir": "a//b", "output_format": "url"}, "output_dir", "relative"),
    ],
)
def test_a_bad_field_is_named_with_what_would_be_right(fields: dict[str, Any], param: str, words: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        planned(request(**fields), FLUX, Settings())
    assert raised.value.param == param
    assert words in raised.value.message


def test_a_field_the_pipeline_does_not_take_is_refused_by_name() -> None:
    with pytest.raises(InvalidRequest, match="CogView4Pipeline as loaded does not take true_cfg_scale") as raised:
        planned(request(true_cfg_scale=2.0), WAN_LIKE, Settings())
    assert raised.value.code == "unsupported_field"


def test_a_negative_prompt_without_guidance_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="guidance_scale above 1"):
        planned(request(negative_prompt="blur", guidance_scale=1.0), WAN_LIKE, Settings())
    with pytest.raises(InvalidRequest, match="never guides"):
        planned(request(negative_prompt="blur"), DISTILLED, Settings())


def test_an_empty_negative_prompt_asks_for_nothing() -> None:
    assert planned(request(negative_prompt=""), FLUX, Settings()).call.passes == 1


def test_a_scheduler_that_cannot_do_one_step_is_not_asked_to() -> None:
    with pytest.raises(InvalidRequest, match="at least 2 steps"):
        planned(request(num_inference_steps=1), QWEN, Settings())


def test_configured_sizes_replace_the_rule() -> None:
    settings = Settings(limits=Limits(sizes=(96, 112)), defaults=RequestDefaults(width=96, height=96))
    assert planned(request(width=112), FLUX, settings).call.arguments["width"] == 112
    with pytest.raises(InvalidRequest, match="it takes 96, 112"):
        planned(request(width=128), FLUX, settings)


def test_steps_that_a_configured_mask_does_not_fit_are_refused() -> None:
    fixed = Settings(cache=CacheSettings(steps_computation_mask=(1, 0, 1, 0)))
    assert planned(request(num_inference_steps=4), FLUX, fixed).call.num_inference_steps == 4
    with pytest.raises(InvalidRequest, match="for 4 steps"):
        planned(request(num_inference_steps=5), FLUX, fixed)
    named = Settings(cache=CacheSettings(steps_computation_mask="fast"))
    with pytest.raises(InvalidRequest, match="cannot be fitted to 5 steps"):
        planned(request(num_inference_steps=5), FLUX, named)


UNGUIDED = replace(FLUX, guidance=replace(FLUX.guidance, honours_scale=False))


def test_a_tolerant_server_ignores_and_reports_what_the_model_cannot_honour() -> None:
    result = planned(request(guidance_scale=7.5), UNGUIDED, Settings(), tolerant=True)
    assert "guidance_scale" not in result.call.arguments
    assert result.call.arguments == planned(request(), UNGUIDED, Settings()).call.arguments
    [warning] = result.warnings
    assert (warning.param, warning.code) == ("guidance_scale", "unsupported_field")
    assert "no guidance embedding" in warning.message
    with pytest.raises(InvalidRequest, match="no guidance embedding"):
        planned(request(guidance_scale=7.5), UNGUIDED, Settings())


def test_a_tolerant_server_ignores_a_negative_prompt_where_the_weights_never_guide() -> None:
    result = planned(request(negative_prompt="blur"), DISTILLED, Settings(), tolerant=True)
    assert "negative_prompt" not in result.call.arguments
    assert [(warning.param, warning.code) for warning in result.warnings] == [("negative_prompt", "unsupported_field")]
    assert "never guides" in result.warnings[0].message
    with pytest.raises(InvalidRequest, match=r"never guides.*it takes: prompt, width"):
        planned(request(negative_prompt="blur"), DISTILLED, Settings())


def test_a_field_of_another_task_is_never_ignored() -> None:
    for fields in ({"image_urls": ["a.png"]}, {"num_frames": 16}):
        with pytest.raises(InvalidRequest, match="does not take"):
            planned(request(**fields), FLUX, Settings(), tolerant=True)


@pytest.mark.parametrize("traits", [FLUX, WAN_LIKE], ids=lambda traits: traits.pipeline_class)
@pytest.mark.parametrize("tolerant", [False, True])
def test_neutral_values_ask_for_nothing_on_every_model(traits: PipelineTraits, tolerant: bool) -> None:
    neutral = {"image_urls": [], "num_frames": 1, "fps": 16, "negative_prompt": "", "true_cfg_scale": 1.0}
    result = planned(request(**neutral), traits, Settings(), tolerant=tolerant)
    assert result.warnings == ()
    assert result.call.passes == planned(request(), traits, Settings()).call.passes


@pytest.mark.parametrize(
    ("sizes", "asked", "used"),
    [((80, 96, 112), (90, 101), (80, 96)), (None, (90, 101), (80, 96)), (None, (96, 128), (96, 128))],
)
def test_a_tolerant_server_rounds_sizes_down_to_the_grid_and_reports_it(
    sizes: tuple[int, ...] | None, asked: tuple[int, int], used: tuple[int, int]
) -> None:
    settings = Settings(limits=Limits(sizes=sizes))
    fields = dict(zip(("width", "height"), asked, strict=True))
    result = planned(request(**fields), FLUX, settings, tolerant=True)
    assert (result.call.arguments["width"], result.call.arguments["height"]) == used
    assert [(w.param, w.code) for w in result.warnings] == [
        (name, "adjusted")
        for name, before, after in zip(("width", "height"), asked, used, strict=True)
        if before != after
    ]


def test_a_size_beyond_the_operators_limits_is_refused_by_a_tolerant_server_too() -> None:
    for fields in ({"width": 5_000}, {"width": 20}):
        with pytest.raises(InvalidRequest, match="not a size"):
            planned(request(**fields), FLUX, Settings(), tolerant=True)
    with pytest.raises(InvalidRequest, match="not a size"):
        planned(request(width=40), FLUX, Settings(limits=Limits(sizes=(80, 96))), tolerant=True)


def test_a_clip_takes_its_frames_and_rate_from_the_request_the_configuration_then_the_pipeline() -> None:
    own = planned(request(), WAN, Settings())
    assert (own.call.video, own.call.pixels) == (VideoSpec(81, 16.0), 832 * 480 * 81)
    assert own.call.arguments["num_frames"] == 81
    configured = Settings(defaults=RequestDefaults(num_frames=49, fps=24.0))
    assert planned(request(), WAN, configured).call.video == VideoSpec(49, 24.0)
    assert planned(request(num_frames=33, fps=30), WAN, configured).call.video == VideoSpec(33, 30)


def test_a_model_that_is_told_the_frame_rate_gets_the_one_at_which_the_clip_is_shown() -> None:
    assert WAN.video is not None
    told = replace(WAN, video=replace(WAN.video, fps_parameter="frame_rate", frames_parameter="frames"))
    result = planned(request(num_frames=33, fps=30), told, Settings())
    assert (result.call.arguments["frame_rate"], result.call.arguments["frames"]) == (30, 33)
    assert "num_frames" not in result.call.arguments
    record = result.parameters(result.call)
    assert (record["num_frames"], record["fps"]) == (33, 30)


@pytest.mark.parametrize(
    ("asked", "made"), [(5, 5), (50, 49), (52, 49), (257, 257), (258, None), (4, None), (1, None), (10**6, None)]
)
def test_frames_off_the_grid_are_rounded_down_where_the_operator_has_it(asked: int, made: int | None) -> None:
    if made is None:
        with pytest.raises(InvalidRequest, match="num_frames"):
            planned(request(num_frames=asked), WAN, Settings(), tolerant=True)
        return
    result = planned(request(num_frames=asked), WAN, Settings(), tolerant=True)
    assert result.call.video is not None
    assert result.call.video.num_frames == made
    assert [warning.param for warning in result.warnings] == (["num_frames"] if asked != made else [])


def test_frames_without_a_remainder_are_multiples() -> None:
    assert WAN.video is not None
    allegro = replace(WAN, video=replace(WAN.video, default_frames=88, remainder=0))
    assert planned(request(num_frames=4), allegro, Settings()).call.video == VideoSpec(4, 16.0)
    with pytest.raises(InvalidRequest, match=r"multiples of 4\); the nearest are 80 and 84"):
        planned(request(num_frames=81), allegro, Settings())


def test_the_work_of_a_clip_counts_its_frames() -> None:
    limits = Limits(max_pixel_steps=832 * 480 * 81 * 50)
    planned(request(num_inference_steps=50), WAN, Settings(limits=limits))
    with pytest.raises(InvalidRequest, match=r"width x height x num_frames x .* ask for fewer frames or steps"):
        planned(request(num_inference_steps=50, num_frames=85), WAN, Settings(limits=limits))


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"clip_skp": 2}, "extra_args.clip_skp: FluxPipeline does not take it; did you mean clip_skip?"),
        ({"width": 64}, "extra_args.width: is a field of the request by itself"),
        ({"callback_on_step_end": 1}, "is set by the server"),
        ({"clip_skip": "2"}, "extra_args.clip_skip: should be a valid integer"),
        ({"clip_skip": 1.5}, "extra_args.clip_skip: should be a valid integer"),
        ({"eta": math.nan}, "extra_args.eta: should be a finite number"),
        ({"prompt_2": "x" * 10_001}, "extra_args.prompt_2 has 10,003 characters"),
        ({"prompt_2": ["a", "b"]}, "extra_args.prompt_2: should be a valid string"),
        ({"crops": [1, 2, 3]}, "extra_args.crops"),
    ],
)
def test_an_extra_argument_is_checked_against_the_pipelines_call(extra: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as refused:
        planned(request(extra_args=extra), FLUX, Settings())
    assert (refused.value.param or "").startswith("extra_args.")


def test_extra_arguments_are_those_that_the_operator_opens() -> None:
    settings = Settings(limits=Limits(extra_args=("eta",), max_sequence_length=300))
    taken = planned(request(extra_args={"eta": 1}), FLUX, settings)
    assert taken.call.arguments["eta"] == 1.0
    with pytest.raises(InvalidRequest, match="not open to requests"):
        planned(request(extra_args={"clip_skip": 1}), FLUX, settings)
    with pytest.raises(InvalidRequest, match="max_sequence_length is 301; this model takes at most 300 tokens"):
        planned(request(max_sequence_length=301), FLUX, settings)
    with pytest.raises(InvalidRequest, match="at most 512 tokens"):
        planned(request(max_sequence_length=513), FLUX, Settings())
    none = planned(request(extra_args={}), WAN_LIKE, Settings())
    assert none.warnings == ()
    with pytest.raises(InvalidRequest, match="does not take extra_args"):
        planned(request(extra_args={"eta": 1}), WAN_LIKE, Settings())


def test_prompts_of_omnigen_name_their_pictures() -> None:
    brought = {Input.IMAGE: "input_images"}
    traits = replace(FLUX, pipeline_class="OmniGenPipeline", several_images=True, brought=brought)
    speeds = SpeedLadder(None, Settings().speeds, CacheSupport({"Transformer.blocks": 12}, {}), 20)
    model = PlannedModel(traits, Settings().defaults, Settings().limits, speeds, False)
    pictures = Inputs(images=(InputImage(Image.new("RGB", (8, 8)), ""),) * 2)
    first = "a cat as in <img><|image_1|></img>"
    with pytest.raises(InvalidRequest, match=r"write <img><\|image_2\|></img> where picture 2 is meant") as refused:
        input_arguments(request(prompt=first), pictures, model)
    assert refused.value.param == "prompt"
    both = input_arguments(request(prompt=f"{first} on <img><|image_2|></img>"), pictures, model)
    assert len(both["input_images"]) == 2


def test_without_offered_schedulers_a_request_has_the_models_own() -> None:
    traits = replace(FLUX, samplers=SamplerTraits(Sampler("euler", "Euler", shift=3.0)))
    for named in ("euler", "auto", "default", None):
        result = planned(request(scheduler=named), traits, Settings())
        assert (result.call.sampler, result.recorded["scheduler"]) == (SamplerChoice("euler"), "euler")
    for fields, param in (({"scheduler": "unipc"}, "scheduler"), ({"shift": 2.0}, "shift")):
        with pytest.raises(InvalidRequest, match=r"model\.schedulers") as refusal:
            planned(request(**fields), traits, Settings())
        assert refusal.value.param == param


def test_a_pipeline_with_a_shift_of_its_own_takes_the_requests() -> None:
    traits = replace(FLUX, parameters=FLUX.parameters | {"shift"}, samplers=SamplerTraits(Sampler("euler", "Euler")))
    result = planned(request(shift=2.0), traits, Settings())
    assert (result.call.arguments["shift"], result.call.sampler) == (2.0, SamplerChoice("euler"))
    assert (result.recorded["scheduler"], result.recorded["shift"]) == ("euler", 2.0)


def test_a_scheduler_that_predicts_twice_a_step_is_planned_by_its_predictions() -> None:
    heun = Sampler("heun", "Heun", per_step=2, further=-1)
    traits = replace(FLUX, samplers=SamplerTraits(Sampler("euler", "Euler"), (heun,)))
    result = planned(request(scheduler="heun", num_inference_steps=10), traits, Settings())
    assert (result.call.arguments["num_inference_steps"], result.steps) == (10, 19)
