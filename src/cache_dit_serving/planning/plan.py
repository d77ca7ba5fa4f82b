"""Planning of a request: one pure function from request to call, and its refusals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cache_dit_serving.errors import InvalidRequest
from cache_dit_serving.media.fit import DEFAULT_FIT
from cache_dit_serving.media.formats import DEFAULT_AUDIO_FORMAT, DEFAULT_VIDEO_FORMAT, OutputSpec
from cache_dit_serving.media.inputs import NO_INPUTS, Inputs
from cache_dit_serving.planning.call import ClipSpec, ImageCall
from cache_dit_serving.planning.fields import FIELDS, accepted_fields
from cache_dit_serving.planning.fields.clip import fps_of, frames_of
from cache_dit_serving.planning.fields.guidance import forward_passes
from cache_dit_serving.planning.fields.images import seeds_of
from cache_dit_serving.planning.fields.inputs import steps_run
from cache_dit_serving.planning.fields.loras import loras_of
from cache_dit_serving.planning.fields.profile import asked_to_profile
from cache_dit_serving.planning.fields.sound import samples_made
from cache_dit_serving.planning.fields.steps import step_count
from cache_dit_serving.planning.fitting import fittings_of
from cache_dit_serving.planning.input_warnings import input_warnings
from cache_dit_serving.planning.inputs import input_arguments, with_size_of_inputs
from cache_dit_serving.planning.model import PlannedModel
from cache_dit_serving.planning.planned import Planned
from cache_dit_serving.planning.resolve import Resolved
from cache_dit_serving.schemas.answers import RequestWarning
from cache_dit_serving.schemas.request import GenerateRequest


def plan(resolved: Resolved, inputs: Inputs = NO_INPUTS) -> Planned:
    """Plan a request on the pipeline of its task.

    Args:
        inputs: decoded pictures and video of the request.

    Raises:
        InvalidRequest: a field that the model cannot honour, a value out of bounds, or two contradicting fields.
        CacheNotEngaged: `cache.strict`, and the settings can reuse no step.
    """
    model, task = resolved.model, resolved.task
    request, warnings = _supported(resolved.request, model, resolved.family)
    request, idle_warnings = _effective(request, model)
    request, inputs, more_warnings = with_size_of_inputs(request, inputs, model)
    configured = model.defaults.pipeline_arguments
    arguments: dict[str, Any] = {name: value for name, value in configured.items() if model.traits.takes(name)}
    recorded: dict[str, Any] = {}
    for field in accepted_fields(model):
        arguments |= field.arguments(request, model)
        recorded |= field.recorded(request, model)
    arguments |= input_arguments(request, inputs, model)
    if model.traits.takes("max_area"):  # FluxKontext would rescale every size to its default area
        arguments["max_area"] = arguments["width"] * arguments["height"]
    count, seeds = _steps_run(request, model), seeds_of(request, model)
    clip = None
    if model.traits.clip is not None:
        clip = ClipSpec(frames_of(request, model), fps_of(request, model))
    if model.traits.sound is not None:
        pixels = samples_made(request, model)
    else:
        sizes, frames = model.traits.sizes, clip.num_frames if clip else 1
        pixels = arguments.get("width", sizes.default_width) * arguments.get("height", sizes.default_height) * frames
        _check_work(pixels, count, len(seeds), model)
    passes = forward_passes(arguments, model.traits)
    choice = model.speeds.choose(request.speed, request.cache, num_inference_steps=count, passes=passes)
    calls = tuple(
        ImageCall(
            arguments=arguments,
            seed=seed,
            cache=choice,
            num_inference_steps=count,
            passes=passes,
            pipeline_class=model.traits.pipeline_class,
            pixels=pixels,
            loras=loras_of(request, model),
            clip=clip,
            makes=model.traits.makes,
            profile=asked_to_profile(request, model),
        )
        for seed in seeds
    )
    planned = Planned(
        calls,
        output=OutputSpec(
            request.encoding,
            request.image_quality,
            request.video_format or DEFAULT_VIDEO_FORMAT,
            request.audio_format or DEFAULT_AUDIO_FORMAT,
        ),
        recorded=recorded,
        inputs=inputs,
        fittings=fittings_of(task, arguments, inputs, request.fit or DEFAULT_FIT, model.traits.pipeline_class),
        warnings=warnings + idle_warnings + more_warnings + _silenced(request, model),
    )
    planned.check_engages()
    return replace(planned, warnings=planned.warnings + input_warnings(planned))


def _silenced(request: GenerateRequest, model: PlannedModel) -> tuple[RequestWarning, ...]:
    """Return a warning if the model makes sound that the requested video format cannot hold."""
    if not model.traits.heard or request.video_format in (None, DEFAULT_VIDEO_FORMAT):
        return ()
    message = f"a {request.video_format} has no sound, and the model's is left out; an mp4 holds it"
    return (RequestWarning(param="video_format", code="adjusted", message=message),)


def _steps_run(request: GenerateRequest, model: PlannedModel) -> int:
    """Return the number of denoising steps that a request runs, over all chunks of a clip.

    Raises:
        InvalidRequest: as :func:`step_count`, or the strength leaves no step.
    """
    count = step_count(request, model)
    run = steps_run(request, model, count)
    if model.traits.clip is not None:
        run *= model.traits.clip.chunks(frames_of(request, model))
    if run < 1:
        raise InvalidRequest(
            f"a strength of {request.strength} leaves none of {count} steps; send a greater one, or more steps",
            param="strength",
        )
    return run


def _supported(
    request: GenerateRequest, model: PlannedModel, family: PlannedModel
) -> tuple[GenerateRequest, tuple[RequestWarning, ...]]:
    """Remove fields that the model does not honour, and adjust values that it does not take. Warn of each.

    Raises:
        InvalidRequest: such a field has an effect elsewhere, and it may not be ignored on this server.
    """
    changed: dict[str, Any] = {}
    warnings = []
    for field in FIELDS:
        value = getattr(request, field.name)
        if value is None:
            continue
        if field.accepted(model):
            if model.tolerant and (taken := field.adjusted(value, model)) != value:
                changed[field.name] = taken
                message = f"{field.name} {value} is not one that this model takes; {taken} was used"
                warnings.append(RequestWarning(param=field.name, code="adjusted", message=message))
            continue
        changed[field.name] = None
        if field.asks_nothing(value):
            continue
        sentence = f"{model.traits.pipeline_class} as loaded does not take {field.name}{field.why_not(model)}"
        elsewhere = sorted(task for other in family.variants if field.accepted(other) for task in other.traits.tasks)
        if elsewhere:
            sentence = f"{field.name} is for {' and '.join(elsewhere)}; image_urls and mask_url decide the task"
        if not (model.tolerant and field.ignorable):
            names = ", ".join(accepted.name for accepted in accepted_fields(model))
            raise InvalidRequest(f"{sentence}; it takes: {names}", param=field.name, code="unsupported_field")
        message = f"{sentence}; it was ignored: leave it out"
        warnings.append(RequestWarning(param=field.name, code="unsupported_field", message=message))
    return request.model_copy(update=changed), tuple(warnings)


def _effective(request: GenerateRequest, model: PlannedModel) -> tuple[GenerateRequest, tuple[RequestWarning, ...]]:
    """Remove fields that other fields of the request disable. Warn of each.

    Raises:
        InvalidRequest: such a field is present, and it may not be ignored on this server.
    """
    warnings = []
    for field in accepted_fields(model):
        if getattr(request, field.name) is None or (reason := field.no_effect(request, model)) is None:
            continue
        if not model.tolerant:
            raise InvalidRequest(reason, param=field.name)
        request = request.model_copy(update={field.name: None})
        message = f"{field.name} was ignored: {reason}"
        warnings.append(RequestWarning(param=field.name, code="no_effect", message=message))
    return request, tuple(warnings)


def _check_work(pixels: int, steps: int, images: int, model: PlannedModel) -> None:
    most = model.max_pixel_steps
    if most is not None and pixels * steps * images > most:
        frames, fewer = (" x num_frames", "frames") if model.traits.clip else ("", "images")
        raise InvalidRequest(
            f"width x height{frames} x num_inference_steps x num_images is {pixels * steps * images:,}; this server "
            f"takes at most {most:,} in one request: ask for fewer {fewer} or steps, or a smaller size",
            param="num_images" if images > 1 else "num_inference_steps",
            code="request_too_large",
        )
