"""Input images and videos of a request: the fields it takes from them, and the arguments made from them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cache_dit_serving.errors import InvalidRequest
from cache_dit_serving.media.frame_times import MOST_FPS
from cache_dit_serving.media.inputs import Inputs
from cache_dit_serving.media.video_input import InputVideo
from cache_dit_serving.planning.families import family_of
from cache_dit_serving.planning.fields import accepted_fields
from cache_dit_serving.planning.fields.size import fitting_size
from cache_dit_serving.planning.fields.video import fitting_frames, least_frames
from cache_dit_serving.planning.model import PlannedModel
from cache_dit_serving.planning.tasks import Input
from cache_dit_serving.schemas.answers import RequestWarning
from cache_dit_serving.schemas.request import GenerateRequest


def with_size_of_inputs(
    request: GenerateRequest, inputs: Inputs, model: PlannedModel
) -> tuple[GenerateRequest, Inputs, tuple[RequestWarning, ...]]:
    """Fill absent fields from the inputs: the size, and for a video the number of frames and the frame rate.

    Returns:
        The filled request, the inputs with the video cut to the frames it uses, and warnings.

    Raises:
        InvalidRequest: the video has fewer frames than the model or the request needs.
    """
    changed: dict[str, Any] = {}
    warnings: tuple[RequestWarning, ...] = ()
    if inputs.size is not None:
        width, height = fitting_size(*inputs.size, model)
        changed = {"width": request.width or width, "height": request.height or height}
    if inputs.video is not None:
        frames, warnings = _frames_taken(request, inputs.video, model)
        fps = min(MOST_FPS, max(1, round(inputs.video.fps)))
        changed |= {"num_frames": frames, "fps": request.fps or fps}
        inputs = replace(inputs, video=inputs.video.beginning(frames))
    taken = {field.name for field in accepted_fields(model)}
    update = {name: value for name, value in changed.items() if name in taken}
    return request.model_copy(update=update), inputs, warnings


def _frames_taken(
    request: GenerateRequest, video: InputVideo, model: PlannedModel
) -> tuple[int, tuple[RequestWarning, ...]]:
    there = len(video.frames)
    if request.num_frames is not None:
        if request.num_frames > there:
            raise InvalidRequest(
                f"num_frames is {request.num_frames} and video_url has {there}; ask for at most as many",
                param="num_frames",
            )
        return request.num_frames, ()
    count = fitting_frames(there, model)
    if count is None:
        least = least_frames(model)
        raise InvalidRequest(
            f"video_url has {there} frames; this model needs at least {least} of them", param="video_url"
        )
    if count == there and not video.more:
        return count, ()
    message = f"the first {count} frames of the video are used: the model takes certain numbers of frames alone"
    return count, (RequestWarning(param="video_url", code="adjusted", message=message),)


def input_arguments(request: GenerateRequest, inputs: Inputs, model: PlannedModel) -> dict[str, Any]:
    """Return the inputs as arguments of the pipeline's call.

    Args:
        request: request returned by :func:`with_size_of_inputs`.
        inputs: inputs returned by :func:`with_size_of_inputs`.

    Raises:
        InvalidRequest: more images than the pipeline takes, an image that the prompt must name and does not, or a
            mask whose size differs from its image's.
    """
    images = [image.image for image in inputs.images]
    if len(images) > 1 and not model.traits.several_images:
        raise InvalidRequest(
            f"image_urls holds {len(images)} pictures; {model.traits.pipeline_class} takes one", param="image_urls"
        )
    if pattern := family_of(model.traits.pipeline_class).image_name:
        for number in range(1, len(images) + 1):
            if (name := pattern.format(number=number)) not in (request.prompt or ""):
                raise InvalidRequest(
                    f"this model's prompts name their pictures: write {name} where picture {number} is meant",
                    param="prompt",
                )
    if inputs.mask is not None and inputs.mask.size != inputs.images[0].size:
        (mask_width, mask_height), (width, height) = inputs.mask.size, inputs.images[0].size
        raise InvalidRequest(
            f"mask_url is {mask_width} x {mask_height} pixels and its picture {width} x {height}; make them equal",
            param="mask_url",
        )
    brought: dict[Input, Any] = {}
    if images:
        brought[Input.IMAGE] = images if model.traits.several_images else images[0]
    for each, image in {
        Input.MASK: inputs.mask,
        Input.CONTROL: inputs.control,
        Input.LAST_IMAGE: inputs.last_image,
    }.items():
        if image is not None:
            brought[each] = image.image
    if inputs.video is not None:
        brought[Input.VIDEO] = list(inputs.video.frames)
    return {model.traits.brought[each]: value for each, value in brought.items()}
