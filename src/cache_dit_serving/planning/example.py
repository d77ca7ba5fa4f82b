"""The one request that is made up here: for trials, the warm-up and estimates."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from cache_dit_serving.media.inputs import NO_INPUTS, InputPicture, Inputs
from cache_dit_serving.planning.model import PlannedModel
from cache_dit_serving.planning.tasks import SERVED_TASKS, TASKS, Input
from cache_dit_serving.schemas.request import GenerateRequest


def example_of(model: PlannedModel, **fields: Any) -> tuple[GenerateRequest, Inputs]:
    """The smallest request that a model of a served task takes, with these fields in it, and its pictures."""
    # Of several tasks the one that needs least: from text alone, if the model can.
    needs = min((TASKS[task].needs for task in model.traits.tasks & SERVED_TASKS), key=len, default=frozenset[Input]())
    example: dict[str, Any] = {"prompt": "an example", "seed": 0}
    inputs = NO_INPUTS
    if Input.IMAGE in needs:
        example["image_urls"] = ["an example"]
        size = (model.traits.sizes.default_width, model.traits.sizes.default_height)
        ramp = Image.fromarray(np.linspace(0, 255, 256, dtype=np.uint8).reshape(16, 16)).resize(size)
        mask = None
        if Input.MASK in needs:
            example["mask_url"] = "an example"
            mask = InputPicture(ramp, "")
        inputs = Inputs((InputPicture(ramp.convert("RGB"), ""),), mask)
    return GenerateRequest.model_validate(example | fields), inputs
