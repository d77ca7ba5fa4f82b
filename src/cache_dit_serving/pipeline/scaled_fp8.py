"""Weights in scaled FP8, as ComfyUI saves them: each matrix divided by a scale, which lies beside it."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from cache_dit_serving.checkpoints.schemes import INPUT_SCALE, MARKER, SCALE


def dequantized(tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return the tensors with their scales applied, in `dtype`; the scales themselves are left out.

    The product is made in float32: ComfyUI makes it in the model's dtype, which rounds the scale too.
    """
    found: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith((SCALE, INPUT_SCALE)) or name.rpartition(".")[2] == MARKER:
            continue
        scale = tensors.get(name.removesuffix(".weight") + SCALE) if name.endswith(".weight") else None
        found[name] = tensor if scale is None else (tensor.float() * scale.float()).to(dtype)
    return found
