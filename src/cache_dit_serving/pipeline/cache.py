"""cache-dit on one loaded pipeline: install it, fit it to each request, read what it did, free what it holds."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import cache_dit
import torch
from cache_dit import BlockAdapter, CacheType
from cache_dit.caching.block_adapters import BlockAdapterRegister

from cache_dit_serving.config import CacheSettings
from cache_dit_serving.errors import LoadError
from cache_dit_serving.pipeline.evidence import diff_quantiles
from cache_dit_serving.schemas import BlockListStats, CacheReport

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def has_separate_cfg(pipe: DiffusionPipeline) -> bool:
    """Whether cache-dit knows this family to run guidance as a second forward pass; False for unknown families."""
    return BlockAdapterRegister.is_supported(pipe) and bool(BlockAdapterRegister.has_separate_cfg(pipe))


class InstalledCache:
    """cache-dit's DBCache or DBPrune on one pipeline.

    Works on cache-dit 1.5.3's contexts: the pipeline's patched call asks its context manager for a fresh context per
    block list at the start of each call. The settings of the coming call are put in there, so that requests with
    different numbers of steps or passes never share state; and the contexts of the last call hold its record.
    """

    def __init__(self, pipe: DiffusionPipeline, settings: CacheSettings) -> None:
        """Enable the cache.

        Raises:
            LoadError: cache-dit has no support for this class, or the settings do not fit its blocks.
        """
        if not BlockAdapterRegister.is_supported(pipe):
            raise LoadError(f"cache-dit {cache_dit.__version__} does not support {type(pipe).__name__}: turn it off")
        self.settings = settings
        self.blocks = block_lists(pipe)
        check_blocks(settings, self.blocks)
        # It would warn that the transformer is patched already: block_lists asked for the adapter, which patches it.
        logging.getLogger("cache_dit.caching.patch_functors.functor_base").setLevel(logging.ERROR)
        # cache-dit 1.5.3 patches the pipeline's class: a class of its own keeps every other pipeline as it was.
        cls = type(pipe)
        pipe.__class__ = type(cls.__name__, (cls,), {"__module__": cls.__module__})
        config, calibrator = cache_dit_configs(settings)
        cache_dit.enable_cache(pipe, cache_config=config, calibrator_config=calibrator)
        self._manager: Any = pipe._context_manager
        self._origins = _context_origins(pipe)
        self._call: tuple[int, bool] | None = None
        self._put_settings_into_each_new_context()

    def prepare(self, num_inference_steps: int, separate_cfg: bool) -> None:
        """Fit the cache to the coming call, whose every step makes two forward passes where `separate_cfg`."""
        self._call = (num_inference_steps, separate_cfg)

    def report(self, num_inference_steps: int) -> tuple[CacheReport, list[BlockListStats]]:
        """What the cache did in the call that just ended."""
        stats = [self._block_list_stats(context) for context in self._contexts()]
        cached_steps = sum(len(steps) for steps in _cached_steps(stats).values())
        executed = self.executed_steps()
        diffs = [diff for record in stats for diff in _diffs(record) if not diff < 0.0]
        report = CacheReport(
            enabled=True,
            engaged=cached_steps > 0,
            reason=self._reason(num_inference_steps, cached_steps, executed, diffs),
            steps=num_inference_steps,
            cached_steps=cached_steps,
            computed_steps=num_inference_steps - cached_steps,
            executed_steps=executed,
            residual_diff=diff_quantiles(diffs),
            settings=self.settings.model_dump(mode="json", exclude_defaults=True),
        )
        return report, stats

    def held_bytes(self) -> int:
        """Bytes of the tensors that the contexts of the last call hold on to, each storage counted once."""
        storages = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
            for context in self._contexts()
            for tensor in _tensors(vars(context), seen=set())
        }
        return sum(storages.values())

    def flush(self) -> int:
        """Free the activations of the last call; the next call begins with none anyway. Returns the bytes freed."""
        freed = self.held_bytes()
        self._manager.clear_contexts()
        self._manager._current_context = None
        return freed

    def _contexts(self) -> list[Any]:
        return list(self._manager._cached_context_manager.values())

    def executed_steps(self) -> int:
        """Denoising steps as cache-dit counted them, in one block list of each transformer."""
        executed: dict[str, int] = {}
        for context in self._contexts():
            passes = 2 if context.cache_config.enable_separate_cfg else 1
            transformer, _ = self._origins[context.name]
            executed[transformer] = math.ceil(context.get_accumulated_transformer_executed_steps() / passes)
        return sum(executed.values())

    def _block_list_stats(self, context: Any) -> BlockListStats:
        transformer, block_list = self._origins[context.name]
        return BlockListStats(
            transformer=transformer,
            block_list=block_list,
            cached_steps=sorted(context.get_cached_steps()),
            diffs={int(step): diff for step, diff in context.get_residual_diffs().items()},
            cfg_cached_steps=sorted(context.get_cfg_cached_steps()),
            cfg_diffs={int(step): diff for step, diff in context.get_cfg_residual_diffs().items()},
        )

    def _put_settings_into_each_new_context(self) -> None:
        reset_context = self._manager.reset_context

        def reset_with_settings(context: Any, *args: Any, **kwargs: Any) -> Any:
            if self._call is not None:
                steps, separate_cfg = self._call
                config = copy.deepcopy(kwargs["cache_config"])
                mask = self.settings.steps_computation_mask
                if isinstance(mask, str):
                    config.steps_computation_mask = cache_dit.steps_mask(total_steps=steps, mask_policy=mask)
                if self.settings.enable_separate_cfg is None:
                    config.enable_separate_cfg = separate_cfg
                kwargs["cache_config"] = config
            return reset_context(context, *args, **kwargs)

        self._manager.reset_context = reset_with_settings

    def _reason(self, steps: int, cached_steps: int, executed: int, diffs: list[float]) -> str | None:
        """Why nothing was reused, or what is wrong with what was."""
        if executed != steps:
            return f"cache-dit counted {executed} steps where {steps} ran"
        if any(math.isnan(diff) for diff in diffs):
            return "a residual difference is not a number"
        if cached_steps:
            return None
        settings, mask = self.settings, self.settings.steps_computation_mask
        if isinstance(mask, tuple) and all(mask):
            return "the step mask computes every step"
        if settings.max_cached_steps == 0 or settings.max_continuous_cached_steps == 0:
            return "the settings allow no cached step"
        if settings.warmup_interval == 1 and steps <= settings.max_warmup_steps:
            return f"{steps} steps are no more than the {settings.max_warmup_steps} of the warm-up"
        if diffs and min(diffs) >= settings.residual_diff_threshold:
            return f"every residual difference is above the threshold {settings.residual_diff_threshold:g}"
        return "no step met the cache's conditions"


def block_lists(pipe: DiffusionPipeline) -> dict[str, int]:
    """Blocks of each list that the cache spans, by transformer class and list: what bounds Fn and Bn."""
    adapter = BlockAdapter.normalize(BlockAdapterRegister.get_adapter(pipe))
    counts: dict[str, int] = {}
    for transformer, blocks, names in zip(adapter.transformer, adapter.blocks, adapter.blocks_name, strict=True):
        for block_list, name in zip(blocks, names, strict=True):
            counts[f"{type(transformer).__name__}.{name}"] = len(block_list)
    return counts


def check_blocks(settings: CacheSettings, blocks: dict[str, int]) -> None:
    """Refuse Fn and Bn that a block list cannot hold: cache-dit fails on the one and computes twice on the other.

    Raises:
        LoadError: naming the list and its blocks.
    """
    first, last = settings.Fn_compute_blocks, settings.Bn_compute_blocks
    for name, count in blocks.items():
        if first + last > count:
            raise LoadError(
                f"cache: Fn_compute_blocks {first} + Bn_compute_blocks {last} is more than the {count} blocks of {name}"
            )
    beyond = [index for index in settings.non_prune_block_ids if index >= max(blocks.values())]
    if beyond:
        raise LoadError(f"cache: non_prune_block_ids {beyond} are beyond the {max(blocks.values())} blocks")


def cache_dit_configs(settings: CacheSettings) -> tuple[Any, Any]:
    """The settings as cache-dit's own `(cache_config, calibrator_config)`."""
    keys = settings.model_dump(exclude_none=True, exclude={"num_inference_steps", "steps_computation_mask"})
    keys["non_prune_block_ids"] = list(settings.non_prune_block_ids)
    if settings.enable_dmd and settings.enable_encoder_dmd is None:
        keys["enable_encoder_dmd"] = True
    loaded = cache_dit.load_configs({"cache_config": keys})
    config = loaded["cache_config"]
    # cache-dit 1.5.3 leaves the type as the string it read, and then fails on it.
    config.cache_type = CacheType.DBPrune if settings.cache_type == "DBPrune" else CacheType.DBCache
    if isinstance(settings.steps_computation_mask, tuple):
        config.steps_computation_mask = list(settings.steps_computation_mask)
    return config, loaded["calibrator_config"]


def _context_origins(pipe: DiffusionPipeline) -> dict[str, tuple[str, str]]:
    """The component and block list behind each of cache-dit's contexts, whose names hold only an object's id."""
    return {
        context: (component, context.rpartition("_")[0])
        for component, module in pipe.components.items()
        for context in getattr(module, "_context_names", ())
    }


def _cached_steps(stats: list[BlockListStats]) -> dict[str, set[int]]:
    """Steps in which any block list of a transformer was reused, in either pass; by transformer.

    Several transformers (Wan 2.2's high and low noise) share the steps of a generation out, each counting from 0.
    """
    steps: dict[str, set[int]] = {}
    for record in stats:
        steps.setdefault(record.transformer, set()).update(record.cached_steps, record.cfg_cached_steps)
    return steps


def _diffs(record: BlockListStats) -> Iterator[float]:
    for diff in (*record.diffs.values(), *record.cfg_diffs.values()):
        yield from diff if isinstance(diff, list) else (diff,)


def _tensors(value: Any, seen: set[int]) -> Iterator[torch.Tensor]:
    """Every tensor reachable from `value` through containers and cache-dit's own objects."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item, seen)
    elif isinstance(value, list | tuple | set):
        for item in value:
            yield from _tensors(item, seen)
    elif type(value).__module__.startswith("cache_dit.") and hasattr(value, "__dict__"):
        yield from _tensors(vars(value), seen)
