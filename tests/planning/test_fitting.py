"""What becomes of pictures and videos of another shape than what is drawn, on each kind of task."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import pytest
from PIL import Image, ImageOps

from cache_dit_serving.config.settings import Limits, Settings
from cache_dit_serving.errors import InvalidRequest
from cache_dit_serving.media.fit import Fit
from cache_dit_serving.media.inputs import InputImage, Inputs
from cache_dit_serving.media.video_input import InputVideo
from cache_dit_serving.planning.fields.inputs import FIELDS_OF_INPUTS
from cache_dit_serving.planning.planned import Planned
from cache_dit_serving.planning.tasks import SERVED_TASKS, SIZED_TASKS, TASKS, Input, Task
from cache_dit_serving.planning.traits import PipelineTraits, StrengthTraits, VideoTraits
from cache_dit_serving.ranks import wire
from tests.support.images import apple, mask
from tests.support.planned import planned, request
from tests.support.traits import FLUX, WAN

SHAPES = {"same": (96, 64), "other": (64, 96)}
DRAWN = (48, 32)
ARGUMENTS = {
    Input.IMAGE: "image",
    Input.MASK: "mask_image",
    Input.CONTROL: "control_image",
    Input.LAST_IMAGE: "last_image",
    Input.VIDEO: "video",
}
FITS: tuple[Fit, ...] = get_args(Fit)
STRENGTH = StrengthTraits(default=0.6, rounds_up=False)
PICTURES = (Task.CONTROL, Task.IMAGE_TO_VIDEO)
VIDEOS = (Task.VIDEO_TO_VIDEO, Task.VIDEO_CONTROL)
BEGINNINGS = (Task.IMG2IMG, Task.INPAINT, Task.CONTROL_IMG2IMG, Task.CONTROL_INPAINT)


def traits_for(task: Task, *, strength: bool, pipeline_class: str = "") -> PipelineTraits:
    traits = WAN if TASKS[task].makes is WAN.makes else FLUX
    clip = VideoTraits(9, 4, 1, "num_frames", None, 16.0) if traits is WAN else None
    return replace(
        traits,
        pipeline_class=pipeline_class or traits.pipeline_class,
        tasks=frozenset({task}),
        brought=ARGUMENTS,
        strength=STRENGTH if strength else None,
        parameters=traits.parameters | ({"strength"} if strength else set()),
        video=clip,
    )


def brought(kinds: frozenset[Input], size: tuple[int, int]) -> tuple[dict[str, Any], Inputs]:
    """Fields of a request, and what they bring at one size."""
    fields: dict[str, Any] = {FIELDS_OF_INPUTS[kind]: "a file" for kind in kinds}
    if Input.IMAGE in kinds:
        fields["image_urls"] = ["a file"]
    frames = tuple(apple(*size).rotate(10 * index) for index in range(11))
    return fields, Inputs(
        images=(InputImage(apple(*size), ""),) if Input.IMAGE in kinds else (),
        mask=InputImage(mask(*size), "") if Input.MASK in kinds else None,
        control=InputImage(apple(*size), "") if Input.CONTROL in kinds else None,
        last_image=InputImage(apple(*size), "") if Input.LAST_IMAGE in kinds else None,
        video=InputVideo(frames, 12.0, more=False, digest="") if Input.VIDEO in kinds else None,
    )


def call_of(
    task: Task, size: tuple[int, int], fit: Fit | None, *, strength: bool = False, pipeline_class: str = ""
) -> Planned:
    kinds = TASKS[task].needs & ARGUMENTS.keys()
    if task is Task.IMAGE_TO_VIDEO:
        kinds |= {Input.LAST_IMAGE}
    fields, inputs = brought(kinds, size)
    asked = request(**fields, width=DRAWN[0], height=DRAWN[1], fit=fit)
    traits = traits_for(task, strength=strength, pipeline_class=pipeline_class)
    return planned(asked, traits, Settings(limits=Limits(min_side=16)), inputs=inputs)


def given(result: Planned) -> dict[str, list[Image.Image]]:
    """The pictures and frames among a call's arguments."""
    named = {name: result.call.arguments[name] for name in ARGUMENTS.values() if name in result.call.arguments}
    return {name: value if isinstance(value, list) else [value] for name, value in named.items()}


def by_pil(image: Image.Image, fit: Fit) -> Image.Image:
    if fit == "crop":
        return ImageOps.fit(image, DRAWN, Image.Resampling.LANCZOS)
    if fit == "pad":
        color = "white" if image.mode == "L" else "black"
        return ImageOps.pad(image, DRAWN, Image.Resampling.LANCZOS, color=color)
    return image.resize(DRAWN, Image.Resampling.LANCZOS)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("task", [*PICTURES, *VIDEOS, Task.INPAINT, Task.CONTROL_INPAINT])
def test_what_leads_a_drawing_is_fitted_where_the_pipeline_would_stretch_it(task: Task, fit: Fit) -> None:
    result = call_of(task, SHAPES["other"], fit)
    fitted = result.fitted()
    fields = list(result.inputs.sizes)
    for name, images in given(result).items():
        expected = images if fit == "stretch" else [by_pil(image, fit) for image in images]
        assert [each.tobytes() for each in given(fitted)[name]] == [each.tobytes() for each in expected], name
    assert [(warning.param, warning.code) for warning in result.warnings if "drawn" in warning.message] == [
        (field, "adjusted") for field in fields
    ]
    assert all(f"fit {fit};" in warning.message for warning in result.warnings if "drawn" in warning.message)


@pytest.mark.parametrize("fit", [None, *FITS])
@pytest.mark.parametrize("task", [*PICTURES, *VIDEOS])
def test_what_has_the_shape_that_is_drawn_comes_to_the_pipeline_as_it_is(task: Task, fit: Fit | None) -> None:
    result = call_of(task, SHAPES["same"], fit)
    assert (result.fittings, result.fitted()) == ((), result)
    assert not any("drawn" in warning.message for warning in result.warnings)


def test_fields_say_which_pictures_are_fitted() -> None:
    assert [each.field for each in call_of(Task.IMAGE_TO_VIDEO, SHAPES["other"], None).fittings] == [
        "image_urls.0",
        "last_image_url",
    ]
    for task in VIDEOS:
        assert [each.field for each in call_of(task, SHAPES["other"], None).fittings] == ["video_url"]
    assert [each.field for each in call_of(Task.CONTROL, SHAPES["other"], None).fittings] == ["control_url"]


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("task", BEGINNINGS)
def test_a_picture_that_a_drawing_begins_from_is_always_resized_before(task: Task, shape: str, fit: Fit) -> None:
    result = call_of(task, SHAPES[shape], fit, strength=True)
    fitted = result.fitted()
    for name, images in given(result).items():
        assert [each.tobytes() for each in given(fitted)[name]] == [by_pil(each, fit).tobytes() for each in images]
    assert bool(result.warnings) is (shape == "other")


def test_frames_of_a_video_that_a_drawing_begins_from_are_fitted_where_their_shape_differs() -> None:
    assert call_of(Task.VIDEO_TO_VIDEO, SHAPES["same"], None, strength=True).fittings == ()
    (fitting,) = call_of(Task.VIDEO_TO_VIDEO, SHAPES["other"], None, strength=True).fittings
    assert (fitting.field, fitting.fit, fitting.by_pipeline) == ("video_url", "crop", False)


def test_the_frames_that_are_not_used_are_let_go() -> None:
    result = call_of(Task.VIDEO_TO_VIDEO, SHAPES["other"], None)
    fitted = result.fitted()
    assert fitted.inputs.video is not None
    assert list(fitted.inputs.video.frames) == fitted.call.arguments["video"]
    assert len(fitted.call.arguments["video"]) == 9
    assert fitted.inputs.video.size == DRAWN
    assert fitted.fitted() is fitted


def test_a_picture_to_edit_stays_and_takes_no_fit() -> None:
    result = call_of(Task.IMAGE_EDIT, SHAPES["other"], None)
    assert (result.fittings, result.warnings) == ((), ())
    with pytest.raises(InvalidRequest) as refused:
        call_of(Task.IMAGE_EDIT, SHAPES["other"], "crop")
    assert (refused.value.param, refused.value.code) == ("fit", "unsupported_field")


def test_a_fit_without_a_picture_is_refused() -> None:
    tasks = frozenset({Task.TEXT_TO_VIDEO, Task.VIDEO_TO_VIDEO})
    traits = replace(traits_for(Task.VIDEO_TO_VIDEO, strength=False), tasks=tasks)
    with pytest.raises(InvalidRequest, match="none is sent; leave fit out") as refused:
        planned(request(fit="pad"), traits, Settings())
    assert refused.value.param == "fit"
    (warning,) = planned(request(fit="pad"), traits, Settings(), tolerant=True).warnings
    assert (warning.param, warning.code) == ("fit", "no_effect")


def test_pipelines_that_do_not_stretch_are_given_what_the_request_has() -> None:
    named = dict(pipeline_class="WanVACEPipeline")
    for shape, fit in [("same", "crop"), ("other", "crop"), ("other", "stretch")]:
        (fitting,) = call_of(Task.VIDEO_TO_VIDEO, SHAPES[shape], fit, **named).fittings  # type: ignore[arg-type]
        assert not fitting.by_pipeline
    named = dict(pipeline_class="Cosmos3OmniPipeline")
    by_pipeline = {
        fit: call_of(Task.IMAGE_TO_VIDEO, SHAPES["other"], fit, **named).fittings[0].by_pipeline  # type: ignore[arg-type]
        for fit in FITS
    }
    assert by_pipeline == {"crop": True, "pad": False, "stretch": False}


def test_ranks_are_given_what_is_fitted() -> None:
    result = call_of(Task.VIDEO_TO_VIDEO, SHAPES["other"], "pad")
    back = wire.call_of(*wire.sample_message(result.fitted().call))
    assert [each.tobytes() for each in back.arguments["video"]] == [
        each.tobytes() for each in result.fitted().call.arguments["video"]
    ]


def test_every_served_task_with_pictures_but_edits_has_a_size() -> None:
    with_media = {task for task in SERVED_TASKS if TASKS[task].needs & ARGUMENTS.keys()}
    assert with_media - SIZED_TASKS == {Task.IMAGE_EDIT}
    assert with_media - {Task.IMAGE_EDIT} == {*PICTURES, *VIDEOS, *BEGINNINGS}
