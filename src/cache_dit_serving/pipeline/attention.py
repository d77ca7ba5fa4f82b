"""Attention backends, checked before they are set.

cache-dit 1.5.3 accepts a backend that the platform cannot run, and the setting is global to the process: every
pipeline then fails until it is set back. So what is not known to run here is refused by name.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

import cache_dit

from cache_dit_serving.errors import LoadError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

NATIVE = "native"
# Backends of cache-dit 1.5.3 and the package each needs (None: torch alone), on CUDA devices.
CUDA_BACKENDS: dict[str, str | None] = {
    NATIVE: None,
    "_native_cudnn": None,
    "_sdpa_cudnn": None,
    "flash": "flash_attn",
    "flash_varlen": "flash_attn",
    "_flash_3": "flash_attn_interface",
    "sage": "sageattention",
    "sage3": "sageattn3",
    "ffpa": "ffpa_attn",
    "ffpa_fp8": "ffpa_attn",
    "ffpa_fp4": "ffpa_attn",
    "ffpa_fp8_per_block": "ffpa_attn",
}


def usable_backends(device_type: str) -> list[str]:
    """The backends that can run on a device of this type with the packages installed here."""
    if device_type != "cuda":
        return [NATIVE]
    return [
        name
        for name, package in CUDA_BACKENDS.items()
        if package is None or importlib.util.find_spec(package) is not None
    ]


def set_backend(pipe: DiffusionPipeline, name: str, device_type: str) -> None:
    """Have the pipeline's transformers compute attention by `name`.

    Raises:
        LoadError: the backend cannot run here; the message lists those that can.
    """
    usable = usable_backends(device_type)
    if name not in usable:
        package = CUDA_BACKENDS.get(name)
        if device_type == "cuda" and package:
            why = f"needs the package {package}, which is not installed"
        elif name in CUDA_BACKENDS:
            why = f"does not run on {device_type}"
        else:
            why = "is not known"
        raise LoadError(f"attention backend {name!r} {why}; usable here: {', '.join(usable)}")
    if name != NATIVE:
        cache_dit.set_attn_backend(pipe, name)
