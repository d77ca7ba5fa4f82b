"""The one request that is made up here: for trials, the warm-up and estimates."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from cache_dit_serving.media.inputs import NO_INPUTS, InputPicture, Inputs
from cache_dit_serving.planning.fields.size import Height, Width
from cache_dit_serving.planning.model import PlannedModel
from cache_dit_serving.planning.tasks import SERVED_TASKS, TASKS, Input, Task
from cache_dit_serving.schemas.request import GenerateRequest


def simplest_task(model: PlannedModel) -> Task:
    """Of the served tasks of a model's own pipeline the one that needs least: from text alone, if it can."""
    return min(sorted(model.traits.tasks & SERVED_TASKS), key=lambda task: len(TASKS[task].needs))


def example_of(model: PlannedModel, task: Task | None = None, **fields: Any) -> tuple[GenerateRequest, Inputs]:
    """The smallest request of a task, with these fields in it, and its pictures.

    Args:
        task: of the model's own pipeline; None: the simplest.
    """
    needs = TASKS[task or simplest_task(model)].needs
    example: dict[str, Any] = {"seed": 0}
    if Input.PROMPT in needs:
        example["prompt"] = "an example"
    if Input.CLASS_LABELS in needs:
        example["class_label"] = 0
    inputs = NO_INPUTS
    if Input.IMAGE in needs:
        example["image_urls"] = ["an example"]
        size = (Width().default(model), Height().default(model))
        ramp = Image.fromarray(np.linspace(0, 255, 256, dtype=np.uint8).reshape(16, 16)).resize(size)
        mask = None
        if Input.MASK in needs:
            example["mask_url"] = "an example"
            mask = InputPicture(ramp, "")
        inputs = Inputs((InputPicture(ramp.convert("RGB"), ""),), mask)
    return GenerateRequest.model_validate(example | fields), inputs
