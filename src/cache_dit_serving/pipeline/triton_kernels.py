"""Settings whose kernels Triton builds, and the C compiler that it builds their launchers with as they first run."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import TYPE_CHECKING

from cache_dit_serving.errors import LoadError
from cache_dit_serving.pipeline.compiler import missing_for

if TYPE_CHECKING:
    import torch

    from cache_dit_serving.config.settings import Settings

PER_BLOCK = "float8_per_block"
"""Type whose matrix product is Triton's in torchao 0.18, on every GPU."""


def check(settings: Settings, device: torch.device) -> None:
    """Refuse settings that would fail in the first request, for lack of a C compiler or Python's headers.

    Raises:
        LoadError: names the setting and the remedy.
    """
    if device.type != "cuda" or (missing := missing_for("C")) is None:
        return
    if (key := next(_wanting(settings), None)) is not None:
        raise LoadError(
            f"{key}: Triton builds its kernels as they first run, and there is no {missing}; install it (in an image "
            "by IMAGE_COMPILER=c++), or leave the setting out"
        )


def _wanting(settings: Settings) -> Iterator[str]:
    """Yield the dotted keys of settings that need Triton."""
    ranks, quantization = settings.parallelism, settings.quantize
    # cache-dit 1.5.3 takes kernels of CuTe DSL in their place where it is installed.
    if ranks is not None and importlib.util.find_spec("cutlass") is None:
        if ranks.ring_size:
            yield "parallelism.ring_size"
        if ranks.ulysses_float8:
            yield "parallelism.ulysses_float8"
    if quantization is not None:
        types = [each.quant_type for each in quantization.by_component(("transformer",)).values()]
        if PER_BLOCK in (*types, *(quantization.precision_plan or {}).values()):
            yield f"quantize ({PER_BLOCK})"
