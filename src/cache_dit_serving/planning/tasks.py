"""Tasks of diffusers' pipelines: inputs and output of each, and the tasks of a given pipeline."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from cache_dit_serving.media.values import MediaKind
from cache_dit_serving.planning.families import family_of

Signature = Mapping[str, inspect.Parameter]


class Input(StrEnum):
    """Input of a pipeline other than a number."""

    PROMPT = "prompt"
    IMAGE = "image"
    MASK = "mask"
    CONTROL = "control"
    LAST_IMAGE = "last image"
    VIDEO = "video"
    CLASS_LABELS = "class labels"


PARAMETERS: dict[Input, frozenset[str]] = {
    Input.PROMPT: frozenset({"prompt"}),
    Input.IMAGE: frozenset({"image", "images", "input_images", "cond_image"}),
    Input.MASK: frozenset({"mask_image", "mask_video"}),
    Input.CONTROL: frozenset({"control_image"}),
    Input.LAST_IMAGE: frozenset({"last_image"}),
    Input.VIDEO: frozenset({"video", "control_video"}),
    Input.CLASS_LABELS: frozenset({"class_labels"}),
}
"""Parameter names of each input in diffusers' pipelines."""
VIDEO_REFERENCES = frozenset({"pose_video", "controls", "reference_conditions", "face_video"})
"""Parameter names of inputs that this server has no fields for, such as poses and depth maps."""
SOUND_LENGTHS = ("audio_end_in_s", "audio_length_in_s", "audio_duration_s", "audio_duration", "duration")
"""Parameter names of the length of a sound, seconds."""
WORDS = frozenset({Input.PROMPT, Input.CLASS_LABELS})
"""Inputs given as text or numbers, not as images or videos."""


class Task(StrEnum):
    """Task of a pipeline. The values are the names used in answers and messages."""

    TEXT_TO_IMAGE = "text-to-image"
    IMAGE_EDIT = "image-edit"
    IMG2IMG = "img2img"
    INPAINT = "inpaint"
    CONTROL = "control"
    CONTROL_IMG2IMG = "control-img2img"
    CONTROL_INPAINT = "control-inpaint"
    CLASS_CONDITIONAL = "class-conditional"
    UNCONDITIONAL = "unconditional"
    TEXT_TO_VIDEO = "text-to-video"
    IMAGE_TO_VIDEO = "image-to-video"
    VIDEO_TO_VIDEO = "video-to-video"
    VIDEO_INPAINT = "video-inpaint"
    VIDEO_CONTROL = "video-control"
    VIDEO_REFERENCE = "video-reference"
    VIDEO_EXTENSION = "video-extension"
    TEXT_TO_AUDIO = "text-to-audio"
    VIEWS = "3d-views"
    LAYERS = "image-layers"
    BY_EXAMPLE = "by-example"


@dataclass(frozen=True)
class TaskFacts:
    needs: frozenset[Input]
    makes: MediaKind


def _facts(makes: MediaKind, *needs: Input) -> TaskFacts:
    return TaskFacts(frozenset(needs), makes)


TASKS: dict[Task, TaskFacts] = {
    Task.TEXT_TO_IMAGE: _facts(MediaKind.IMAGE, Input.PROMPT),
    Task.IMAGE_EDIT: _facts(MediaKind.IMAGE, Input.PROMPT, Input.IMAGE),
    Task.IMG2IMG: _facts(MediaKind.IMAGE, Input.PROMPT, Input.IMAGE),
    Task.INPAINT: _facts(MediaKind.IMAGE, Input.PROMPT, Input.IMAGE, Input.MASK),
    Task.CONTROL: _facts(MediaKind.IMAGE, Input.PROMPT, Input.CONTROL),
    Task.CONTROL_IMG2IMG: _facts(MediaKind.IMAGE, Input.PROMPT, Input.IMAGE, Input.CONTROL),
    Task.CONTROL_INPAINT: _facts(MediaKind.IMAGE, Input.PROMPT, Input.IMAGE, Input.MASK, Input.CONTROL),
    Task.CLASS_CONDITIONAL: _facts(MediaKind.IMAGE, Input.CLASS_LABELS),
    Task.UNCONDITIONAL: _facts(MediaKind.IMAGE),
    Task.TEXT_TO_VIDEO: _facts(MediaKind.VIDEO, Input.PROMPT),
    Task.IMAGE_TO_VIDEO: _facts(MediaKind.VIDEO, Input.PROMPT, Input.IMAGE),
    Task.VIDEO_TO_VIDEO: _facts(MediaKind.VIDEO, Input.PROMPT, Input.VIDEO),
    Task.VIDEO_INPAINT: _facts(MediaKind.VIDEO, Input.PROMPT, Input.VIDEO, Input.MASK),
    Task.VIDEO_CONTROL: _facts(MediaKind.VIDEO, Input.PROMPT, Input.VIDEO),
    Task.VIDEO_REFERENCE: _facts(MediaKind.VIDEO, Input.PROMPT),
    Task.VIDEO_EXTENSION: _facts(MediaKind.VIDEO, Input.PROMPT, Input.VIDEO),
    Task.TEXT_TO_AUDIO: _facts(MediaKind.AUDIO, Input.PROMPT),
    Task.VIEWS: _facts(MediaKind.IMAGE, Input.PROMPT),
    Task.LAYERS: _facts(MediaKind.IMAGE, Input.PROMPT, Input.IMAGE),
    Task.BY_EXAMPLE: _facts(MediaKind.IMAGE, Input.PROMPT, Input.IMAGE),
}
SERVED_TASKS = frozenset(
    {
        Task.TEXT_TO_IMAGE,
        Task.IMAGE_EDIT,
        Task.IMG2IMG,
        Task.INPAINT,
        Task.CONTROL,
        Task.CONTROL_IMG2IMG,
        Task.CONTROL_INPAINT,
        Task.CLASS_CONDITIONAL,
        Task.TEXT_TO_VIDEO,
        Task.IMAGE_TO_VIDEO,
        Task.VIDEO_TO_VIDEO,
        Task.VIDEO_CONTROL,
        Task.TEXT_TO_AUDIO,
    }
)
"""Tasks that this version has requests for."""
EDITING_TASKS = frozenset(
    task for task in SERVED_TASKS - {Task.VIDEO_CONTROL} if TASKS[task].needs & {Input.IMAGE, Input.VIDEO}
)
"""Served tasks that make the output of an image or video of the request. A control image only guides it."""
SIZED_TASKS = frozenset(
    task for task in SERVED_TASKS - {Task.IMAGE_EDIT} if TASKS[task].needs & {Input.IMAGE, Input.CONTROL, Input.VIDEO}
)
"""Served tasks whose pipelines resize their inputs to the output size."""


def tasks_of(signature: Signature, makes: MediaKind, pipeline_class: str) -> frozenset[Task]:
    """Return the tasks of a pipeline: its call takes all inputs of a task, and the task provides all required ones."""
    taken = frozenset(given for given, names in PARAMETERS.items() if names & signature.keys())
    needed = frozenset(given for given in taken if any(_required(signature, name) for name in PARAMETERS[given]))
    if "frame_size" in signature:
        return frozenset({Task.VIEWS})  # ShapE renders one object from all sides
    if "content_prompt" in signature:
        return frozenset({Task.BY_EXAMPLE})  # VisualCloze takes pairs of images
    if "layers" in signature:
        return frozenset({Task.LAYERS})  # QwenImageLayered decomposes an image
    if VIDEO_REFERENCES & signature.keys():
        return frozenset({Task.VIDEO_REFERENCE})
    if "overlap_history" in signature and Input.VIDEO in taken:
        return frozenset({Task.VIDEO_EXTENSION})  # SkyReels-V2 extends a video
    if "control_video" in signature:
        return frozenset({Task.VIDEO_CONTROL})
    if "control_mask" in signature:
        return frozenset({Task.INPAINT})  # Stable Diffusion 3 and Qwen-Image inpaint their control image
    if Input.CONTROL in taken:
        with_image = Task.CONTROL_INPAINT if Input.MASK in taken else Task.CONTROL_IMG2IMG
        return frozenset({with_image if Input.IMAGE in taken else Task.CONTROL})
    if Input.CLASS_LABELS in taken:
        return frozenset({Task.CLASS_CONDITIONAL})
    if Input.MASK in taken:
        needed |= TASKS[Task.INPAINT if makes is MediaKind.IMAGE else Task.VIDEO_INPAINT].needs
    # A call with a strength starts from its input, whatever the default. LTX's conditions may be empty.
    begins_from_media = "strength" in signature and "conditions" not in signature
    fitting = {
        task for task, facts in TASKS.items() if facts.makes is makes and facts.needs <= taken and needed <= facts.needs
    }
    fitting -= {
        Task.VIEWS,
        Task.LAYERS,
        Task.BY_EXAMPLE,
        Task.VIDEO_REFERENCE,
        Task.VIDEO_EXTENSION,
        Task.VIDEO_CONTROL,
        Task.IMAGE_EDIT if "strength" in signature else Task.IMG2IMG,
    }
    if begins_from_media or family_of(pipeline_class).needs_input:
        fitting -= {Task.TEXT_TO_IMAGE, Task.TEXT_TO_VIDEO}
    return frozenset(fitting - {Task.UNCONDITIONAL} or fitting)


def _required(signature: Signature, name: str) -> bool:
    return name in signature and signature[name].default is inspect.Parameter.empty
