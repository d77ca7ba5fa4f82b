"""cache-dit's parallelism on a pipeline: the work of one forward pass spread over the ranks of a process group."""

from __future__ import annotations

import importlib.util
import inspect
import logging
from typing import TYPE_CHECKING, Any

import cache_dit
import torch
from cache_dit import ParallelismConfig

from cache_dit_serving.errors import LoadError
from cache_dit_serving.pipeline.quantize import DENOISERS

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from cache_dit_serving.config.acceleration import ParallelismSettings

logger = logging.getLogger(__name__)


def check(settings: ParallelismSettings | None, device: torch.device) -> None:
    """Refuse what the device cannot do, before any weights are loaded.

    Raises:
        LoadError: saying why.
    """
    if settings is None:
        return
    if importlib.util.find_spec("einops") is None:
        raise LoadError("parallelism: needs the package einops, which is not installed: pip install einops")
    if settings.ring_size and device.type == "cpu":
        raise LoadError("parallelism.ring_size: ring attention does not run on a CPU; use ulysses_size or tp_size")


def enable(pipe: DiffusionPipeline, settings: ParallelismSettings) -> None:
    """Spread the transformers, and the components that the settings name, over the ranks.

    Raises:
        LoadError: the transformer's heads cannot be dealt out to so many, or cache-dit has no plan for it.
    """
    for name in DENOISERS:
        if (transformer := getattr(pipe, name, None)) is not None:
            _check_heads(transformer, settings)
    if settings.tp_size and pipe.device.type == "cpu":
        # cache-dit 1.5.3 asks for an accelerator where any device would do.
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
    try:
        cache_dit.enable_cache(pipe, parallelism_config=config)
    except (AssertionError, ValueError, NotImplementedError, RuntimeError, ImportError) as error:
        logger.exception("parallelism")
        name = type(pipe).__name__
        raise LoadError(
            f"parallelism: cache-dit cannot spread a {name} so; the server's log has the details"
        ) from error
    _keep_signatures(pipe)


def _keep_signatures(pipe: DiffusionPipeline) -> None:
    """cache-dit 1.5.3 reads the signatures of blocks to cache them, and its own hooks for parallelism hide those."""
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
