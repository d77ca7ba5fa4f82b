"""Pictures by diffusers alone, which those of the server are compared with."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from cache_dit_serving.pipeline.protocol import Loaded


def embedded_by_diffusers(pipe: Any, loaded: Loaded, steps: int) -> np.ndarray[Any, Any]:
    """The picture that the embedded model's pipeline draws of the in-process tests' usual request, as floats."""
    drawn: np.ndarray[Any, Any] = pipe(
        "a red apple on a blue background",
        num_inference_steps=steps,
        width=96,
        height=96,
        guidance_scale=loaded.model.defaults.guidance_scale or 3.5,
        max_sequence_length=loaded.model.defaults.max_sequence_length or 512,
        generator=torch.Generator("cpu").manual_seed(3),
        output_type="np",
    ).images[0]
    return drawn
