"""The service over a pipeline whose call returns a finished picture at once, for benchmarks.answers."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import FluxPipeline

from benchmarks.files import picture
from service import CacheDiTServing

SIDE = 1024
DECODED = torch.from_numpy(picture(SIDE, SIDE)).movedim(-1, 0)[None].contiguous() / 255
"""Decoded output as the pipeline gives it, (1, 3, height, width) floats in [0, 1]."""


@functools.wraps(FluxPipeline.__call__)  # the server reads its signature and its source
def at_once(pipe: FluxPipeline, *, num_inference_steps: int, callback_on_step_end: Any, **arguments: Any) -> Any:
    """Report each step, and return the picture."""
    for step in range(num_inference_steps):
        callback_on_step_end(pipe, step, None, {})
    return SimpleNamespace(images=DECODED)


FluxPipeline.__call__ = at_once

__all__ = ["CacheDiTServing"]
