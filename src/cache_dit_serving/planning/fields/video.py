"""Fields `num_frames` and `fps` of a clip."""

from __future__ import annotations

from typing import Any

from cache_dit_serving.errors import InvalidRequest
from cache_dit_serving.media.frame_times import MOST_FPS
from cache_dit_serving.media.values import MediaKind
from cache_dit_serving.planning.draft import Draft
from cache_dit_serving.planning.fields.field import PipelineField, RequestField, Schema
from cache_dit_serving.planning.model import PlannedModel
from cache_dit_serving.planning.traits import VideoTraits
from cache_dit_serving.schemas.request import GenerateRequest


class VideoField(PipelineField):
    """A field that every video-making model accepts, whatever the name of the pipeline's parameter."""

    makes = MediaKind.VIDEO

    def accepted(self, model: PlannedModel) -> bool:
        return model.traits.makes is self.makes


class NumFrames(VideoField):
    name = "num_frames"
    ignorable = False

    def asks_nothing(self, value: Any) -> bool:
        return value in (None, 1)

    def schema(self, model: PlannedModel) -> Schema:
        video = _video(model)
        taken = _taken(model)
        # JSON Schema can express multiples, but not multiples with a remainder.
        listed: Schema = {"multipleOf": video.multiple} if video.remainder == 0 else {"enum": list(taken)}
        return listed | {"minimum": taken[0], "maximum": taken[-1]}

    def default(self, model: PlannedModel) -> int:
        return model.defaults.num_frames or _video(model).default_frames

    def adjusted(self, value: int, model: PlannedModel) -> int:
        """Round down to a number that the model makes. A value below the minimum or above `max_num_frames` is kept."""
        taken = _taken(model)
        if not taken[0] <= value <= model.limits.max_num_frames:
            return value
        return _rounded_down(value, taken)

    def check(self, request: GenerateRequest, model: PlannedModel) -> None:
        value, taken = frames_of(request, model), _taken(model)
        if value not in taken:
            raise InvalidRequest(_refusal(value, taken, model), param="num_frames")

    def arguments(self, request: GenerateRequest, model: PlannedModel) -> dict[str, Any]:
        parameter = _video(model).frames_parameter
        return {parameter: frames_of(request, model)} if parameter else {}

    def recorded(self, request: GenerateRequest, model: PlannedModel) -> dict[str, Any]:
        return {self.name: frames_of(request, model)}

    def fill_in(self, draft: Draft, request: GenerateRequest) -> None:
        super().fill_in(draft, request)
        draft.num_frames = frames_of(request, draft.model)
        draft.chunks = _video(draft.model).chunks(draft.num_frames)


class Fps(VideoField):
    name = "fps"

    def asks_nothing(self, value: Any) -> bool:
        """Return True for any value, because an image has no frame rate."""
        return True

    def schema(self, model: PlannedModel) -> Schema:
        return {"maximum": MOST_FPS}

    def default(self, model: PlannedModel) -> float:
        return model.defaults.fps or _video(model).default_fps

    def arguments(self, request: GenerateRequest, model: PlannedModel) -> dict[str, Any]:
        parameter = _video(model).fps_parameter
        return {parameter: fps_of(request, model)} if parameter else {}

    def recorded(self, request: GenerateRequest, model: PlannedModel) -> dict[str, Any]:
        return {self.name: fps_of(request, model)}

    def fill_in(self, draft: Draft, request: GenerateRequest) -> None:
        super().fill_in(draft, request)
        draft.fps = fps_of(request, draft.model)


def frames_of(request: GenerateRequest, model: PlannedModel) -> int:
    """Return the number of frames of a request's clip."""
    return request.num_frames if request.num_frames is not None else NumFrames().default(model)


def fitting_frames(there: int, model: PlannedModel) -> int | None:
    """Return the greatest number of frames, up to `there`, that the model makes; None if all are greater."""
    taken = _taken(model)
    return _rounded_down(min(there, taken[-1]), taken) if there >= taken[0] else None


def fps_of(request: GenerateRequest, model: PlannedModel) -> float:
    """Return the frame rate of a request's video, frames per second."""
    return request.fps if request.fps is not None else Fps().default(model)


def least_frames(model: PlannedModel) -> int | None:
    """Return the minimum number of frames of the model's videos; None if it makes no clips."""
    return _taken(model)[0] if model.traits.video is not None else None


def _video(model: PlannedModel) -> VideoTraits:
    assert model.traits.video is not None
    return model.traits.video


def _taken(model: PlannedModel) -> range:
    """Return the numbers of frames that a request may ask for. A video has at least two."""
    video = _video(model)
    least = video.least or (video.remainder if video.remainder > 1 else video.remainder + video.multiple)
    most = min(model.limits.max_num_frames, video.most or model.limits.max_num_frames)
    return range(least, max(least, most) + 1, video.multiple)


def _rounded_down(value: int, taken: range) -> int:
    """Return the greatest allowed number of frames up to `value`, which must not be below the minimum."""
    return value - (value - taken.start) % taken.step


def _refusal(value: int, taken: range, model: PlannedModel) -> str:
    video = _video(model)
    rule = f"{video.multiple}k + {video.remainder}" if video.remainder else f"multiples of {video.multiple}"
    if value > taken[-1]:
        bounded_by = "this model" if taken[-1] == video.most else "this server"
        return f"num_frames is {value:,}; {bounded_by} makes at most {taken[-1]:,} frames ({rule})"
    if value < taken[0]:
        return f"num_frames is {value}; this model makes at least {taken[0]} frames ({rule})"
    below = _rounded_down(value, taken)
    return (
        f"num_frames {value} is not a number of frames that this model makes ({rule}); "
        f"the nearest are {below} and {below + video.multiple}"
    )


FIELDS: tuple[RequestField, ...] = (NumFrames(), Fps())
