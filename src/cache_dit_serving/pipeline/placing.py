"""Placing of a pipeline's components: on the device, or in host memory until they are needed.

diffusers, accelerate and cache-dit move components by hooks that wrap `forward`. The hooks are set before the cache,
which patches the `forward` beneath them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import cache_dit
import torch

from cache_dit_serving.config.footprints import footprint_of
from cache_dit_serving.errors import DETAILS, LoadError
from cache_dit_serving.pipeline.memory import memory_advice, needing_memory
from cache_dit_serving.pipeline.networks import networks_of

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from cache_dit_serving.config.settings import ModelSettings
    from cache_dit_serving.pipeline.shared_weights import WeightsOfModel

logger = logging.getLogger(__name__)


def check(model: ModelSettings, device: torch.device) -> None:
    """Refuse offload and device maps on a machine without an accelerator.

    Raises:
        LoadError: the device is a CPU.
    """
    for key, value in (("offload", model.offload), ("device_map", model.device_map)):
        if value is not None and device.type == "cpu":
            raise LoadError(f"model.{key}: {value} wants an accelerator, and there is none here; leave it out")


def place(
    pipe: DiffusionPipeline,
    model: ModelSettings,
    device: torch.device,
    progress: Callable[[str], None],
    shared: WeightsOfModel | None = None,
) -> None:
    """Move the components to the device, or set the hooks that move them when they are needed. Set up the VAE.

    Args:
        shared: weights of other models: those that lie on the device already are used; None: there are none.

    Raises:
        LoadError: the components do not fit, or the pipeline does not support the offload or the VAE's setting.
    """
    name = type(pipe).__name__
    too_large = f"the model does not fit into the memory of {device}"
    if advice := memory_advice(footprint_of(model.path), device):
        too_large += f". {advice}"
    try:
        with needing_memory(too_large):
            if model.offload is not None:
                progress(f"preparing {name} for offload ({model.offload})")
                _offload(pipe, model.offload, device)
            elif model.device_map is None:
                components = networks_of(pipe)
                if shared is not None:
                    shared.find(components, device, progress)
                progress(f"moving {name} to {device}")
                pipe.to(device)
                if shared is not None:
                    shared.hold(components, device)
    except (ValueError, ImportError) as error:
        logger.exception("model.offload does not work on this pipeline")
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
        # diffusers sets its hooks anew after each call, and would remove the cache with the old ones.
        pipe.maybe_free_model_hooks = lambda: _send_back(pipe)
    elif kind == "sequential":
        pipe.enable_sequential_cpu_offload(device=device)
    elif kind == "group":
        # Layer by layer, because a group of blocks fetches the next group ahead, which the cache may skip.
        pipe.enable_group_offload(
            onload_device=device, offload_device=torch.device("cpu"), offload_type="leaf_level", use_stream=False
        )
    else:
        cache_dit.layerwise_offload(pipe, onload_device=device)


def share(pipe: Any, sibling: Any) -> None:
    """Give a sibling the pipeline's offload hooks, so that its components leave the device after a call too."""
    if hasattr(pipe, "_all_hooks"):
        sibling._all_hooks = pipe._all_hooks
        sibling.maybe_free_model_hooks = pipe.maybe_free_model_hooks


def release(pipe: Any) -> None:
    """Move components back to host memory after a call that raised, and free what a decoder keeps between frames."""
    if hasattr(pipe, "_all_hooks"):
        pipe.maybe_free_model_hooks()
    vae: Any = getattr(pipe, "vae", None)
    if hasattr(vae, "clear_cache"):  # Wan, Qwen-Image; without a call that raised they do so themselves
        vae.clear_cache()


def _send_back(pipe: Any) -> None:
    for hook in pipe._all_hooks:
        hook.offload()
