"""The networks among a pipeline's components: all that have weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def networks_of(pipe: DiffusionPipeline) -> dict[str, torch.nn.Module]:
    """Return the networks of a pipeline by their components' names."""
    return {name: each for name, each in pipe.components.items() if isinstance(each, torch.nn.Module)}
