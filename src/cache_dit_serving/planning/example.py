"""Example requests, used for trials, the warm-up and estimates."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from PIL import Image

from cache_dit_serving.media.inputs import InputImage, Inputs
from cache_dit_serving.media.video_input import InputVideo
from cache_dit_serving.planning.families import family_of
from cache_dit_serving.planning.fields.inputs import FIELDS_OF_INPUTS
from cache_dit_serving.planning.fields.size import Height, Width, fitting_size
from cache_dit_serving.planning.fields.video import least_frames
from cache_dit_serving.planning.model import PlannedModel
from cache_dit_serving.planning.tasks import SERVED_TASKS, TASKS, WORDS, Input, Task
from cache_dit_serving.schemas.request import GenerateRequest

GUIDING = 4.0
"""Scale at which every model that can guides."""
NOTHING = "blurry"


def simplest_task(model: PlannedModel) -> Task:
    """Return the served task with the fewest inputs of the model's own pipeline: text alone, if it can."""
    return min(sorted(model.traits.tasks & SERVED_TASKS), key=lambda task: len(TASKS[task].needs))


def example_of(
    model: PlannedModel,
    task: Task | None = None,
    *,
    last_image: bool = False,
    pixels: int | None = None,
    **fields: Any,
) -> tuple[GenerateRequest, Inputs]:
    """Return the smallest request of a task, and its inputs.

    Args:
        task: task of the model's own pipeline; None: the simplest.
        last_image: send a last image too.
        pixels: maximum area of the output and the inputs, pixels; None: the model's default size.
        fields: further fields of the request.
    """
    needs = TASKS[task or simplest_task(model)].needs
    example: dict[str, Any] = {"seed": 0}
    if pixels is not None:
        example |= dict(zip(("width", "height"), _size(model, pixels), strict=True))
    if Input.PROMPT in needs:
        example["prompt"] = family_of(model.traits.pipeline_class).example_prompt
    if Input.CLASS_LABELS in needs:
        example["class_label"] = 0
    brought = needs - WORDS | ({Input.LAST_IMAGE} if last_image else set())
    for each in brought:
        example[FIELDS_OF_INPUTS[each]] = ["an example"] if each is Input.IMAGE else "an example"
    return GenerateRequest.model_validate(example | fields), _inputs(brought, model, pixels) if brought else Inputs()


def guiding(model: PlannedModel) -> dict[str, Any]:
    """Return fields of a request that turn guidance on; empty if the model never guides."""
    traits, guidance = model.traits, model.traits.guidance
    if traits.takes("true_cfg_scale"):
        return {"true_cfg_scale": max(GUIDING, guidance.default_true_cfg_scale or 0.0), "negative_prompt": NOTHING}
    if not math.isfinite(guidance.guides_above):
        return {}
    negative = {"negative_prompt": NOTHING} if traits.takes("negative_prompt") else {}
    if not traits.takes("guidance_scale"):
        return negative
    return {"guidance_scale": max(GUIDING, guidance.default_scale or 0.0), **negative}


def _size(model: PlannedModel, pixels: int | None) -> tuple[int, int]:
    """Return the default width and height, or a smaller size of the same aspect ratio."""
    return fitting_size(Width().default(model), Height().default(model), model, pixels)


def _inputs(brought: frozenset[Input], model: PlannedModel, pixels: int | None) -> Inputs:
    size = _size(model, pixels)
    ramp = Image.fromarray(np.linspace(0, 255, 256, dtype=np.uint8).reshape(16, 16)).resize(size)
    colour = InputImage(ramp.convert("RGB"), "")
    frames = (colour.image,) * (least_frames(model) or 1)
    return Inputs(
        images=(colour,) if Input.IMAGE in brought else (),
        mask=InputImage(ramp, "") if Input.MASK in brought else None,
        control=colour if Input.CONTROL in brought else None,
        last_image=colour if Input.LAST_IMAGE in brought else None,
        video=InputVideo(frames, 16.0, more=False, digest="") if Input.VIDEO in brought else None,
    )
