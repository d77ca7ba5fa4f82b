"""cache-dit's parallelism on a pipeline: one forward pass spread over the ranks of a process group."""

from __future__ import annotations

import importlib.util
import inspect
import logging
from typing import TYPE_CHECKING, Any

import cache_dit
import numpy as np
import torch
from cache_dit import ParallelismConfig

from cache_dit_serving.errors import DETAILS, LoadError
from cache_dit_serving.pipeline.freed_memory import free_without_sleeping
from cache_dit_serving.pipeline.output import audio_rate_of, media_of, output_of
from cache_dit_serving.pipeline.quantize import DENOISERS

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from cache_dit_serving.config.acceleration import ParallelismSettings
    from cache_dit_serving.media.values import Array
    from cache_dit_serving.planning.call import ImageCall

logger = logging.getLogger(__name__)

CLOSE = {torch.float32: 1e-3}
CLOSE_HALF = 0.1
"""Greatest accepted difference of a channel (0 to 1) between several ranks and one, below 32 bits. Sums are rounded in
another order; `CLOSE` has the bound of other dtypes."""
UNDIVIDED = "must be divisible by mesh size"
"""Text in cache-dit's error for a sequence that the ranks cannot share evenly."""


def check(settings: ParallelismSettings | None, device: torch.device) -> None:
    """Refuse parallelism that cannot run on the device, before any weights are loaded.

    Raises:
        LoadError: the package einops is missing, or ring attention is set on a CPU.
    """
    if settings is None:
        return
    if importlib.util.find_spec("einops") is None:
        raise LoadError("parallelism: needs the package einops, which is not installed: pip install einops")
    if settings.ring_size and device.type == "cpu":
        raise LoadError("parallelism.ring_size: ring attention does not run on a CPU; use ulysses_size or tp_size")


def enable(pipe: DiffusionPipeline, settings: ParallelismSettings, call: ImageCall) -> None:
    """Spread the transformers, and the components that the settings name, over the ranks.

    cache-dit 1.5.3 makes other outputs with some models then, without an error. So one call is drawn before and after,
    and the outputs are compared.

    Args:
        call: the call to compare by, short and without a cache.

    Raises:
        LoadError: the number of heads is no multiple of the number of ranks, cache-dit has no plan for the pipeline, or
            the outputs differ.
    """
    for name in DENOISERS:
        if (transformer := getattr(pipe, name, None)) is not None:
            _check_heads(transformer, settings)
    before = _output(pipe, call)
    if settings.tp_size and pipe.device.type == "cpu":
        # cache-dit 1.5.3 requires an accelerator, though tensor parallelism runs on a CPU too.
        torch.accelerator.current_accelerator = lambda check_available=False: torch.device("cpu")
    config = ParallelismConfig(
        ulysses_size=settings.ulysses_size,
        ring_size=settings.ring_size,
        tp_size=settings.tp_size,
        ulysses_anything=settings.ulysses_anything,
        ulysses_async=settings.ulysses_async,
        ulysses_float8=settings.ulysses_float8,
        extra_parallel_modules=list(settings.extra_parallel_modules) or None,
    )
    free_without_sleeping()
    try:
        cache_dit.enable_cache(pipe, parallelism_config=config)
    except (AssertionError, ValueError, NotImplementedError, RuntimeError, ImportError) as error:
        logger.exception("cache-dit cannot spread this pipeline over the ranks")
        name = type(pipe).__name__
        raise LoadError(f"parallelism: cache-dit cannot spread a {name} so{DETAILS}") from error
    _keep_signatures(pipe)
    difference = float(np.abs(_output(pipe, call) - before).max())
    logger.info("%d ranks draw as one, but for %.1e", settings.world_size, difference)
    dtype = next(getattr(pipe, DENOISERS[0]).parameters()).dtype
    if not difference <= CLOSE.get(dtype, CLOSE_HALF):
        raise LoadError(
            f"parallelism: {settings.world_size} ranks draw something else than one (a channel differs by "
            f"{difference:.2g} of 1): cache-dit does not spread this model right; leave parallelism out"
        )


def _output(pipe: DiffusionPipeline, call: ImageCall) -> Array:
    """Return the output of a call on this pipeline, with seed 0.

    Raises:
        LoadError: the ranks cannot share the call's sequence evenly.
    """
    try:
        with torch.inference_mode():
            torch.manual_seed(0)
            generator = torch.Generator("cpu").manual_seed(0)
            output = pipe(**call.arguments, generator=generator, output_type="np")
    except AssertionError as error:
        if UNDIVIDED not in str(error):
            raise
        why = "the default size gives a sequence that the ranks cannot share evenly; set another by defaults"
        raise LoadError(f"parallelism: {why}") from error
    fps = call.video.fps if call.video else None
    return media_of(output, output_of(type(pipe)), fps=fps, audio_rate=audio_rate_of(pipe)).array


def _keep_signatures(pipe: DiffusionPipeline) -> None:
    """Restore the signatures of the modules' `forward`, which cache-dit's parallel hooks hide.

    cache-dit 1.5.3 reads the signatures of blocks to cache them.
    """
    for name in DENOISERS:
        transformer = getattr(pipe, name, None)
        for module in transformer.modules() if transformer is not None else ():
            if "forward" in vars(module):
                parameters = list(inspect.signature(type(module).forward).parameters.values())[1:]
                module.forward.__signature__ = inspect.Signature(parameters)


def _check_heads(transformer: Any, settings: ParallelismSettings) -> None:
    heads = getattr(transformer.config, "num_attention_heads", None)
    for key in ("ulysses_size", "tp_size"):
        size = getattr(settings, key)
        if size and isinstance(heads, int) and heads % size:
            fitting = ", ".join(str(each) for each in range(2, heads + 1) if heads % each == 0)
            raise LoadError(f"parallelism.{key}: {heads} attention heads cannot be dealt out to {size}; {fitting} fit")
