"""Where a pipeline's components lie: on the device, or in the computer's memory until they are needed.

diffusers, accelerate and cache-dit do the moving, by hooks that wrap `forward`. They are put on before the cache, which
finds them and patches beneath them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import cache_dit
import torch

from cache_dit_serving.errors import DETAILS, LoadError
from cache_dit_serving.pipeline.memory import needing_memory

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from cache_dit_serving.config.settings import ModelSettings

logger = logging.getLogger(__name__)


def check(model: ModelSettings, device: torch.device) -> None:
    """Refuse to move components where there is nowhere to move them.

    Raises:
        LoadError: there is no accelerator.
    """
    for key, value in (("offload", model.offload), ("device_map", model.device_map)):
        if value is not None and device.type == "cpu":
            raise LoadError(f"model.{key}: {value} wants an accelerator, and there is none here; leave it out")


def place(pipe: DiffusionPipeline, model: ModelSettings, device: torch.device, progress: Callable[[str], None]) -> None:
    """Move the components to the device, or have them moved as they are needed.

    Raises:
        LoadError: they do not fit, or the pipeline has no place for what is asked.
    """
    name = type(pipe).__name__
    try:
        with needing_memory(f"the model does not fit into the memory of {device}"):
            if model.offload is not None:
                progress(f"preparing {name} for offload ({model.offload})")
                _offload(pipe, model.offload, device)
            elif model.device_map is None:
                progress(f"moving {name} to {device}")
                pipe.to(device)
    except (ValueError, ImportError) as error:
        logger.exception("offload")
        raise LoadError(f"model.offload: {model.offload} does not work on a {name}{DETAILS}") from error
    for key, wanted in (("slicing", model.vae_slicing), ("tiling", model.vae_tiling)):
        if wanted:
            enable = getattr(getattr(pipe, "vae", None), f"enable_{key}", None)
            if enable is None:
                raise LoadError(f"model.vae_{key}: the VAE of a {name} has none; leave it out")
            enable()


def _offload(pipe: Any, kind: str, device: torch.device) -> None:
    if kind == "model":
        pipe.enable_model_cpu_offload(device=device)
        # diffusers puts its hooks on anew after each call, and would take the cache off with the old ones.
        pipe.maybe_free_model_hooks = lambda: _send_back(pipe)
    elif kind == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    elif kind == "group":
        # Layer by layer: groups of blocks fetch the next one ahead, which the cache may skip.
        pipe.enable_group_offload(
            onload_device=device, offload_device=torch.device("cpu"), offload_type="leaf_level", use_stream=False
        )
    else:
        cache_dit.layerwise_offload(pipe, onload_device=device)


def share(pipe: Any, sibling: Any) -> None:
    """Have a sibling, whose components have the hooks already, send them back after a call as the pipeline does."""
    if hasattr(pipe, "_all_hooks"):
        sibling._all_hooks = pipe._all_hooks
        sibling.maybe_free_model_hooks = pipe.maybe_free_model_hooks


def release(pipe: Any) -> None:
    """Send back what a call left on the device, when it ended by an exception."""
    if hasattr(pipe, "_all_hooks"):
        pipe.maybe_free_model_hooks()


def _send_back(pipe: Any) -> None:
    for hook in pipe._all_hooks:
        hook.offload()
