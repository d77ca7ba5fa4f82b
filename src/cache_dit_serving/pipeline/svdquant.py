"""SVDQuant of cache-dit: its needs of the machine, and the loading of the checkpoints that it serialised."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cache_dit
import torch

from cache_dit_serving.errors import DETAILS, LoadError

if TYPE_CHECKING:
    from cache_dit_serving.checkpoints.checkpoint_file import CheckpointFile
    from cache_dit_serving.config.sources import Sources

logger = logging.getLogger(__name__)

Capability = tuple[int, int]
LEAST: dict[str, Capability] = {"int4": (8, 0), "nvfp4": (12, 0)}
"""Least compute capability by precision, from the build of cache-dit's kernels."""
NO_KERNELS = "needs cache-dit's SVDQuant kernels, which this build of it has not"
HOPPER = 9
"""Major compute capability that cache-dit's kernels are not built for."""


def refusal(precision: str, device_type: str, capability: Capability | None, *, kernels: bool) -> str | None:
    """Return the reason that layers of SVDQuant do not run on a device, as a phrase that follows their type's name.

    None: they do, as far as cache-dit's build tells.

    Args:
        precision: `int4` or `nvfp4`.
        capability: compute capability of a CUDA device.
        kernels: true if cache-dit's CUDA kernels can be imported.
    """
    if device_type != "cuda" or capability is None:
        return f"does not run on {device_type}"
    if capability < LEAST[precision] or capability[0] == HOPPER:
        wanted, there = (".".join(map(str, each)) for each in (LEAST[precision], capability))
        other = " other than 9.0" if precision == "int4" else ""
        return f"needs a GPU of compute capability {wanted}{other}; this one has {there}"
    if not kernels:
        return NO_KERNELS
    return None


def refusal_on(precision: str, device: torch.device) -> str | None:
    """Return :func:`refusal` for a device of this machine."""
    capability = torch.cuda.get_device_capability(device) if device.type == "cuda" else None
    return refusal(precision, device.type, capability, kernels=has_kernels())


def has_kernels() -> bool:
    """Return whether cache-dit's CUDA kernels can be imported. Its wheel on PyPI has none; a build from source may."""
    from cache_dit.kernels import svdq_extension_is_available

    return bool(svdq_extension_is_available())


def check(sources: Sources, device: torch.device, dtype: str) -> None:
    """Refuse checkpoints of SVDQuant that do not run on the device, before any weights are loaded.

    Raises:
        LoadError: names the setting, the file and the remedy.
    """
    for source in sources.components.values():
        file = source.file
        if file is None or (layers := file.svdquant) is None:
            continue
        named = f"{source.key}: {file.name}: it is quantised as {file.scheme} ({layers.quant_type})"
        if why := refusal_on(layers.precision, device):
            raise LoadError(
                f"{named}, which {why}; serve the full weights, quantised by `quantize` if need be, or take the file "
                "in GGUF or FP8"
            )
        if layers.dtype != dtype:
            raise LoadError(f"{named}, for model.dtype {layers.dtype}, not {dtype}; set model.dtype to it")


def loaded_over(transformer: torch.nn.Module, file: CheckpointFile, key: str) -> torch.nn.Module:
    """Return a transformer with the layers of a checkpoint in place of its own, by cache-dit's loader.

    Args:
        transformer: the whole transformer that the layers were quantised from, not quantised itself.
        key: dotted key of the setting that names the file.

    Raises:
        LoadError: the layers are of another model.
    """
    try:
        loaded: Any = cache_dit.load(transformer, str(Path(file.path).absolute()))
    except (AttributeError, KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        logger.exception("%s: loading %s failed", key, file.name)
        name = type(transformer).__name__
        raise LoadError(
            f"{key}: {file.name} has layers of another model than this {name}; take the model.base or model.path that "
            f"it was quantised from{DETAILS}"
        ) from error
    module: torch.nn.Module = loaded
    return module


def quant_type_of(component: Any) -> str | None:
    """Return the type of a component whose layers were loaded from a checkpoint of SVDQuant; None: they were not."""
    from_file = getattr(component, "_svdq_checkpoint_path", None)
    return str(component._quantize_type) if from_file else None


def layers_of(component: Any) -> int:
    """Return the number of a component's layers that SVDQuant quantised, in memory or in a checkpoint."""
    return len(getattr(component, "_svdq_quantized_layers", ()))
