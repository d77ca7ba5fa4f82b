"""From a request to a call: one pure function, and everything it refuses."""

from __future__ import annotations

from typing import Any

from cache_dit_serving.errors import InvalidRequest
from cache_dit_serving.media.formats import DEFAULT_VIDEO_FORMAT, OutputSpec
from cache_dit_serving.planning.call import ClipSpec, Drawing, GenerationCall
from cache_dit_serving.planning.fields import FIELDS, accepted_fields
from cache_dit_serving.planning.fields.clip import fps_of
from cache_dit_serving.planning.fields.guidance import forward_passes
from cache_dit_serving.planning.fields.images import seeds_of
from cache_dit_serving.planning.fields.steps import step_count
from cache_dit_serving.planning.model import PlannedModel
from cache_dit_serving.schemas.answers import RequestWarning
from cache_dit_serving.schemas.request import GenerateRequest


def plan(request: GenerateRequest, model: PlannedModel) -> GenerationCall:
    """The call that answers `request` on the loaded model.

    Raises:
        InvalidRequest: a field the model cannot honour, a value out of bounds, or two fields that contradict.
        CacheNotEngaged: `cache.strict`, and it is certain beforehand that no step will be reused.
    """
    request, warnings = _supported(request, model)
    arguments: dict[str, Any] = {}
    for field in accepted_fields(model):
        arguments |= field.arguments(request, model)
    arguments |= model.defaults.pipeline_arguments
    count, seeds = step_count(request, model), seeds_of(request, model)
    clip = None
    if model.traits.clip is not None:
        clip = ClipSpec(arguments[model.traits.clip.frames_parameter], fps_of(request, model))
    frames = clip.num_frames if clip else 1
    pixels = max(1, arguments.get("width", 0) * arguments.get("height", 0)) * frames
    _check_work(pixels, count, len(seeds), model)
    passes = forward_passes(arguments, model.traits)
    choice = model.speeds.choose(request.speed, request.cache, num_inference_steps=count, passes=passes)
    call = GenerationCall(
        arguments=arguments,
        drawings=tuple(Drawing(seed, choice) for seed in seeds),
        num_inference_steps=count,
        passes=passes,
        pixels=pixels,
        clip=clip,
        output=OutputSpec(request.encoding, request.image_quality, request.video_format or DEFAULT_VIDEO_FORMAT),
        warnings=warnings,
    )
    call.check_engages()
    return call


def _supported(request: GenerateRequest, model: PlannedModel) -> tuple[GenerateRequest, tuple[RequestWarning, ...]]:
    """The request without the fields that the model does not honour, and what was ignored or adjusted.

    Raises:
        InvalidRequest: such a field asks for something, and the operator or the field does not let it be ignored.
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
        if not (model.tolerant and field.ignorable):
            names = ", ".join(accepted.name for accepted in accepted_fields(model))
            raise InvalidRequest(f"{sentence}; it takes: {names}", param=field.name, code="unsupported_field")
        message = f"{sentence}; it was ignored: leave it out"
        warnings.append(RequestWarning(param=field.name, code="unsupported_field", message=message))
    return request.model_copy(update=changed), tuple(warnings)


def _check_work(pixels: int, steps: int, images: int, model: PlannedModel) -> None:
    most = model.max_pixel_steps
    if pixels * steps * images > most:
        frames, fewer = (" x num_frames", "frames") if model.traits.clip else ("", "images")
        raise InvalidRequest(
            f"width x height{frames} x num_inference_steps x num_images is {pixels * steps * images:,}; this server "
            f"takes at most {most:,} in one request: ask for fewer {fewer} or steps, or a smaller size",
            param="num_images" if images > 1 else "num_inference_steps",
            code="request_too_large",
        )
