"""Parallelism of a pipeline over the ranks of a process group: of one forward pass by cache-dit, and of guidance."""

from __future__ import annotations

import importlib.util
import inspect
import logging
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import cache_dit
import numpy as np
import torch
import torch.distributed as dist
from cache_dit import ParallelismConfig
from cache_dit.distributed.autoencoders import register as autoencoders
from cache_dit.distributed.autoencoders import utils as tiles
from cache_dit.distributed.autoencoders.dispatch import _ensure_auto_encoder_dp_planners_activated as activate_planners
from cache_dit.distributed.autoencoders.register import AutoEncoderDataParallelismPlannerRegister
from cache_dit.distributed.text_encoders import register as text_encoders
from cache_dit.distributed.transformers import register as transformers
from torch.distributed.device_mesh import init_device_mesh

from cache_dit_serving.errors import DETAILS, LoadError
from cache_dit_serving.pipeline.failure import summary
from cache_dit_serving.pipeline.freed_memory import free_without_sleeping
from cache_dit_serving.pipeline.guidance import PassesVary, SharedGuidance
from cache_dit_serving.pipeline.output import audio_rate_of, media_of, output_of
from cache_dit_serving.pipeline.quantize import DENOISERS
from cache_dit_serving.pipeline.wrapped import standing_in, wrapped

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


def enable(pipe: DiffusionPipeline, settings: ParallelismSettings, call: ImageCall) -> SharedGuidance | None:
    """Spread the transformers, and the components that the settings name, over the ranks.

    cache-dit 1.5.3 makes other outputs with some models then, without an error, and some pipelines do not take the
    results of guidance's passes late. So one call is drawn before and after, and the outputs are compared.

    Args:
        call: the call to compare by, short and without a cache; with guidance where the ranks share it.

    Returns:
        The sharing of guidance's passes; None without it.

    Raises:
        LoadError: the number of heads is no multiple of the number of ranks, cache-dit has no plan for the pipeline,
            the pipeline makes no passes that can be shared, or the outputs differ.
    """
    # It takes a group's rank for one of all (1.5.3).
    tiles.dist = standing_in(dist, P2POp=_to_rank_of_group)
    if settings.vae_size is not None or "vae" in settings.extra_parallel_modules:
        pipe.vae.enable_tiling()  # before the first output too: tiles may show seams
    before = _output(pipe, call)
    if settings.vae_size is not None:
        _spread_vae(pipe, settings.vae_size)
    if settings.pass_size > 1:
        _spread_pass(pipe, settings)
    if settings.guidance is None:
        guidance, difference = None, _difference(before, _output(pipe, call))
    else:
        guidance = SharedGuidance(settings.guidance)
        guidance.install(_transformers(pipe))
        difference = _difference_of_shared(pipe, call, guidance, before)
    logger.info("%d ranks draw as one, but for %.1e", settings.world_size, difference)
    if not difference <= _close(pipe):
        raise LoadError(
            f"parallelism: {settings.world_size} ranks draw something else than one (a channel differs by "
            f"{difference:.2g} of 1): {_why(settings)}; leave parallelism out"
        )
    return guidance


def _difference_of_shared(pipe: DiffusionPipeline, call: ImageCall, guidance: SharedGuidance, before: Array) -> float:
    """Share guidance in the way that fits the pipeline; return the greatest difference of a channel from `before`.

    Raises:
        LoadError: there is nothing to share, or the pipeline cannot share its passes in any way.
    """
    name, difference = type(pipe).__name__, math.inf
    for guidance.ahead in (True, False):  # ahead first: it notices a request that it does not fit
        try:
            with guidance.shared(pipe):
                output = _output(pipe, call)
        except PassesVary as vary:
            logger.info("%s does not share its passes so: %s", name, vary)
            continue
        except LoadError:
            raise
        except Exception as error:
            logger.exception("the ranks cannot share the passes of %s", name)
            raise LoadError(f"parallelism.guidance: {name} cannot share its passes ({summary(error)})") from error
        if not guidance.shares:
            raise LoadError(f"parallelism.guidance: {name} makes one forward pass a step, so there is nothing to share")
        difference = _difference(before, output)
        if difference <= _close(pipe):
            break
    return difference


def _difference(before: Array, after: Array) -> float:
    """Return the greatest difference of a channel on any rank, so that all ranks decide alike; infinity for NaN."""
    difference = float(np.abs(after - before).max())
    found = torch.tensor([difference if math.isfinite(difference) else math.inf])
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return float(found)


def _close(pipe: DiffusionPipeline) -> float:
    """Return the greatest accepted difference of a channel."""
    dtype = next(getattr(pipe, DENOISERS[0]).parameters()).dtype
    return CLOSE.get(dtype, CLOSE_HALF)


def _why(settings: ParallelismSettings) -> str:
    if settings.pass_size > 1:
        return "cache-dit does not spread this model right"
    return "its forward passes depend on each other's results"


def _spread_pass(pipe: DiffusionPipeline, settings: ParallelismSettings) -> None:
    """Spread each forward pass by cache-dit."""
    for transformer in _transformers(pipe):
        _check_heads(transformer, settings)
    if (settings.tp_size or settings.extra_parallel_modules) and pipe.device.type == "cpu":
        # cache-dit 1.5.3 requires an accelerator, though tensor parallelism and further components run on a CPU too.
        torch.accelerator.current_accelerator = lambda check_available=False: torch.device("cpu")
    free_without_sleeping()
    try:
        with _group_as_world(settings, pipe.device.type):
            config = ParallelismConfig(
                ulysses_size=settings.ulysses_size,
                ring_size=settings.ring_size,
                tp_size=settings.tp_size,
                ulysses_anything=settings.ulysses_anything,
                ulysses_async=settings.ulysses_async,
                ulysses_float8=settings.ulysses_float8,
                extra_parallel_modules=list(settings.extra_parallel_modules) or None,
            )
            cache_dit.enable_cache(pipe, parallelism_config=config)
    except (AssertionError, ValueError, NotImplementedError, RuntimeError, ImportError) as error:
        logger.exception("cache-dit cannot spread this pipeline over the ranks")
        name = type(pipe).__name__
        raise LoadError(f"parallelism: cache-dit cannot spread a {name} so{DETAILS}") from error
    _keep_signatures(pipe)


def _spread_vae(pipe: DiffusionPipeline, size: int) -> None:
    """Spread the tiles that the VAE codes over `size` consecutive ranks, by cache-dit's planner for its class.

    Raises:
        LoadError: cache-dit has none.
    """
    mesh = init_device_mesh(pipe.device.type, (dist.get_world_size() // size, size), mesh_dim_names=("copies", "tiles"))
    name = type(pipe.vae).__name__
    try:
        activate_planners()
        planner = AutoEncoderDataParallelismPlannerRegister.get_planner(pipe.vae)()
    except ValueError as error:
        raise LoadError(f"parallelism.vae_size: cache-dit cannot spread a {name}; leave it out") from error
    planner.parallelize_tiling(auto_encoder=pipe.vae, dp_mesh=mesh["tiles"])


def _to_rank_of_group(op: Any, tensor: torch.Tensor, peer: int, group: Any) -> Any:
    return dist.P2POp(op, tensor, group=group, group_peer=peer)


@contextmanager
def _group_as_world(settings: ParallelismSettings, device_type: str) -> Iterator[None]:
    """Have cache-dit spread a pass over this rank's group alone in the body. It takes all ranks (1.5.3)."""
    if settings.guidance is None:
        yield
        return
    sizes = {"ring": settings.ring_size or 1, "ulysses": settings.ulysses_size or 1, "tp": settings.tp_size or 1}
    whole = init_device_mesh(device_type, (settings.guidance, *sizes.values()), mesh_dim_names=("guidance", *sizes))
    rank = dist.get_rank() % settings.pass_size

    def mesh(*args: Any, mesh_dim_names: tuple[str, ...] | None = None, **kwargs: Any) -> Any:
        return whole[mesh_dim_names] if mesh_dim_names else whole[tuple(sizes)]._flatten()

    with ExitStack() as stack:
        for owner in (dist, dist.device_mesh, autoencoders, text_encoders, transformers):
            if hasattr(owner, "init_device_mesh"):
                stack.enter_context(wrapped(owner, "init_device_mesh", lambda own: mesh))
        stack.enter_context(wrapped(dist, "get_rank", lambda own: lambda group=None: rank))
        stack.enter_context(wrapped(dist, "get_world_size", lambda own: lambda group=None: settings.pass_size))
        yield


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
    for transformer in _transformers(pipe):
        for module in transformer.modules():
            if "forward" in vars(module):
                parameters = list(inspect.signature(type(module).forward).parameters.values())[1:]
                module.forward.__signature__ = inspect.Signature(parameters)


def _transformers(pipe: DiffusionPipeline) -> list[torch.nn.Module]:
    return [each for name in DENOISERS if (each := getattr(pipe, name, None)) is not None]


def _check_heads(transformer: Any, settings: ParallelismSettings) -> None:
    heads = getattr(transformer.config, "num_attention_heads", None)
    for key in ("ulysses_size", "tp_size"):
        size = getattr(settings, key)
        if size and isinstance(heads, int) and heads % size:
            fitting = ", ".join(str(each) for each in range(2, heads + 1) if heads % each == 0)
            raise LoadError(f"parallelism.{key}: {heads} attention heads cannot be dealt out to {size}; {fitting} fit")
