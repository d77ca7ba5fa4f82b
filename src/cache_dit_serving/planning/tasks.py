"""The tasks of diffusers' pipelines: which ones a pipeline has, by the signature of its call."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from enum import StrEnum

Signature = Mapping[str, inspect.Parameter]


class Task(StrEnum):
    """A task, by the name that answers and messages give it."""

    TEXT_TO_IMAGE = "text-to-image"
    IMAGE_EDIT = "image-edit"
    IMG2IMG = "img2img"
    INPAINT = "inpaint"
    CONTROL = "control"
    TEXT_TO_VIDEO = "text-to-video"
    IMAGE_TO_VIDEO = "image-to-video"
    VIDEO_TO_VIDEO = "video-to-video"
    TEXT_TO_AUDIO = "text-to-audio"
    CLASS_CONDITIONAL = "class-conditional"
    UNCONDITIONAL = "unconditional"


SERVED_TASKS = frozenset({Task.TEXT_TO_IMAGE})
"""Those that this version has requests for."""


def tasks_of(signature: Signature) -> frozenset[Task]:
    """The tasks of a pipeline by the parameters of its call. The first rule that fits decides."""
    return frozenset({_task_of(signature)})


def _task_of(signature: Signature) -> Task:
    if "num_waveforms_per_prompt" in signature:
        return Task.TEXT_TO_AUDIO
    if {"num_frames", "num_videos_per_prompt", "video"} & signature.keys():
        if "video" in signature:
            return Task.VIDEO_TO_VIDEO
        return Task.IMAGE_TO_VIDEO if _required(signature, "image") else Task.TEXT_TO_VIDEO
    rules = (
        ("class_labels", Task.CLASS_CONDITIONAL),
        ("mask_image", Task.INPAINT),
        ("control_image", Task.CONTROL),
        ("strength", Task.IMG2IMG),
    )
    for parameter, task in rules:
        if parameter in signature:
            return task
    for parameter in ("image", "images", "input_images"):
        # FLUX.2's pipeline and its like edit when given pictures and draw from text when not.
        if parameter in signature and _required(signature, parameter):
            return Task.IMAGE_EDIT
    return Task.TEXT_TO_IMAGE if "prompt" in signature else Task.UNCONDITIONAL


def _required(signature: Signature, name: str) -> bool:
    return name in signature and signature[name].default is inspect.Parameter.empty
