"""cache-dit on one loaded pipeline: its settings for each call, its record, and its memory."""

from __future__ import annotations

import copy
import functools
import inspect
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import MethodType
from typing import TYPE_CHECKING, Any, Literal

import cache_dit
import torch
from cache_dit import BlockAdapter, DBCacheConfig, DBPruneConfig
from cache_dit.caching.block_adapters import BlockAdapterRegister
from cache_dit.caching.cache_contexts.prune_context import PrunedContext
from cache_dit.caching.cache_contexts.prune_manager import PrunedContextManager

from cache_dit_serving.caching.checks import CacheSupport
from cache_dit_serving.caching.evidence import Record
from cache_dit_serving.caching.parts import PARTS
from cache_dit_serving.caching.report import BlockListStats
from cache_dit_serving.caching.settings import CacheSettings, CacheType
from cache_dit_serving.pipeline import workarounds
from cache_dit_serving.pipeline.failure import summary
from cache_dit_serving.pipeline.own_forward import context_of_all_passes
from cache_dit_serving.pipeline.patch import Patch
from cache_dit_serving.planning.families import family_of

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

logger = logging.getLogger(__name__)

Transition = Literal["none", "override", "exchange"]
"""Change that a call needs beside the contexts, which cache-dit makes anew for each call.

none: no change; override: other settings in the contexts; exchange: another patch, or none, on the pipeline.
"""
CONFIGS: dict[CacheType, Callable[..., Any]] = {"DBCache": DBCacheConfig, "DBPrune": DBPruneConfig}


def guided_passes_of(pipe: DiffusionPipeline) -> int:
    """Return the forward passes per step with guidance as cache-dit registers them for this family.

    1 for families that cache-dit does not know.
    """
    found = 1

    def ask() -> None:
        nonlocal found
        if BlockAdapterRegister.is_supported(pipe) and BlockAdapterRegister.has_separate_cfg(pipe):
            found = 2

    try:
        # cache-dit builds the family's adapter for the answer, which gives some transformers another forward
        # (Qwen-Image's with a ControlNet), and refuses some (SanaVideo).
        Patch(pipe, ask)
    except AssertionError:
        return 1
    return found


@dataclass
class _Installation:
    """cache-dit enabled once on the pipeline, as DBCache or as DBPrune."""

    patch: Patch
    manager: Any
    """cache-dit's context manager, which holds a context for each block list of the current call."""
    origins: dict[str, tuple[str, str]]
    """(component, block list) of each context, by its name, which holds only an object's id."""
    blocks: dict[str, int]
    """Number of blocks in each context's list, by the context's name."""


@dataclass(frozen=True)
class _Segment:
    """Record of one context, for a whole call or for the part up to a forced refresh."""

    executed_steps: int
    forward_passes: int
    cached_steps: tuple[int, ...]
    diffs: dict[int, float | list[float]]
    cfg_cached_steps: tuple[int, ...]
    cfg_diffs: dict[int, float | list[float]]
    reused_blocks: int


@dataclass
class _Call:
    """Settings of the coming call for its contexts, and the records of contexts that a refresh has replaced."""

    settings: CacheSettings
    steps: int
    passes: int
    """Forward passes a step."""
    own_passes: int
    """Those of them that this process makes: fewer where guidance is shared by ranks."""
    left: dict[str, list[_Segment]] = field(default_factory=dict)
    """Records up to each forced refresh, by context. The contexts are not kept: their calibrators hold activations."""


class PipelineCache:
    """cache-dit's DBCache and DBPrune on one pipeline, both off until :meth:`prepare` turns one on.

    Works on cache-dit 1.5.3's contexts. At the start of each call the patched pipeline makes a new context per block
    list. The settings of the call are put in there, so no call affects the next one. The contexts of the last call hold
    its record.

    Each type is enabled once, and its patch is kept. A change of the type, or to no cache, restores attributes: without
    a cache the pipeline is as it was loaded.
    """

    def __init__(self, pipe: DiffusionPipeline) -> None:
        """Enable each type once. A type that fails is listed in `support.refusals`; its exception goes to the log."""
        workarounds.install()
        self._installed: dict[CacheType, _Installation] = {}
        self._on: CacheType | None = None
        self._call: _Call | None = None
        refusals: dict[CacheType, str] = {}
        blocks: dict[str, int] = {}
        name = type(pipe).__name__
        if not BlockAdapterRegister.is_supported(pipe):
            refusals = dict.fromkeys(CONFIGS, f"cache-dit {cache_dit.__version__} does not support {name}")
        elif (reason := family_of(name).no_cache_reason) is not None:
            refusals = dict.fromkeys(CONFIGS, f"{name} cannot be cached: {reason}")
        else:
            # cache-dit would warn that the transformer is patched already: counting the blocks has patched it.
            logging.getLogger("cache_dit.caching.patch_functors.functor_base").setLevel(logging.ERROR)
            for cache_type in CONFIGS:
                try:
                    self._installed[cache_type] = self._install(pipe, cache_type, blocks)
                except Exception as error:
                    logger.exception("%s could not be enabled", cache_type)
                    version = cache_dit.__version__
                    refusals[cache_type] = (
                        f"{cache_type} of cache-dit {version} could not be enabled on {name} ({summary(error)})"
                    )
        self.support = CacheSupport(blocks, refusals)

    def refuse(self, cache_type: CacheType, reason: str) -> None:
        """Remove a type that failed on trial, and turn the cache off.

        Args:
            reason: sentence for callers.
        """
        self.prepare(None, 0, passes=1)
        self._installed.pop(cache_type, None)
        self.support = CacheSupport(self.support.block_lists, {**self.support.refusals, cache_type: reason})

    def prepare(
        self, settings: CacheSettings | None, num_inference_steps: int, *, passes: int, own_passes: int | None = None
    ) -> Transition:
        """Prepare the cache for the coming call by the smallest change; returns that change.

        Args:
            settings: None for no cache.
            passes: forward passes a step.
            own_passes: those that this process makes; None: all.
        """
        wanted = None if settings is None else settings.cache_type
        before, self._call = self._call, None
        if settings is not None:
            self._call = _Call(settings, num_inference_steps, passes, own_passes or passes)
        if wanted == self._on:
            same = before is not None and before.settings == settings
            return "none" if wanted is None or same else "override"
        if self._on is not None:
            self._free()
            self._installed[self._on].patch.take_off()
        if wanted is not None:
            self._installed[wanted].patch.put_on()
        self._on = wanted
        return "exchange"

    def record(self) -> Record | None:
        """Return the cache's record of the call that just ended; None without a cache."""
        if self._call is None:
            return None
        return Record(
            settings=self._call.settings,
            passes=self._call.passes,
            executed=self._executed_steps(self._call.own_passes),
            block_lists=[self._stats(name) for name in self._manager_contexts()],
        )

    def reused_blocks(self) -> int:
        """Return the number of block runs that the current call has reused so far, or since its last forced refresh."""
        if self._on is None:
            return 0
        # Called after each step: without a copy of the contexts, which only this thread changes.
        contexts = self._installed[self._on].manager._cached_context_manager.items()
        return sum(_reused_blocks(context, self._blocks(name)) for name, context in contexts)

    def _executed_steps(self, passes: int) -> dict[str, int]:
        """Return the denoising steps that cache-dit counted, by transformer; of one block list each."""
        executed: dict[str, int] = {}
        for name in self._manager_contexts():
            transformer, _ = self._origin(name)
            made = sum(segment.forward_passes for segment in self._segments(name))
            executed[transformer] = math.ceil(made / passes)
        return executed

    def held_bytes(self) -> int:
        """Return the bytes of the tensors that the last call's contexts hold, each storage counted once."""
        storages = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
            for context in self._manager_contexts().values()
            for tensor in _tensors(vars(context), seen=set())
        }
        return sum(storages.values())

    def flush(self) -> int:
        """Free the activations of the last call, which no later call uses. Returns the bytes freed."""
        freed = self.held_bytes()
        self._free()
        return freed

    def _free(self) -> None:
        if self._on is not None:
            manager = self._installed[self._on].manager
            manager.clear_contexts()
            manager._current_context = None

    def _manager_contexts(self) -> dict[str, Any]:
        return {} if self._on is None else dict(self._installed[self._on].manager._cached_context_manager)

    def _origin(self, context_name: str) -> tuple[str, str]:
        assert self._on is not None
        return self._installed[self._on].origins[context_of_all_passes(context_name)]

    def _blocks(self, context_name: str) -> int:
        assert self._on is not None
        return self._installed[self._on].blocks[context_of_all_passes(context_name)]

    def _segments(self, context_name: str) -> list[_Segment]:
        """Return the records of a block list's contexts in this call, in order: several after a forced refresh."""
        left = self._call.left.get(context_name, []) if self._call else []
        last = self._segment(self._manager_contexts()[context_name])
        # A context refreshed right after the last step holds a copy of steps that are counted already.
        return [*left, last] if last.executed_steps else left

    def _segment(self, context: Any) -> _Segment:
        assert self._on is not None
        return _Segment(
            executed_steps=context.executed_steps,
            forward_passes=context.transformer_executed_steps,
            cached_steps=tuple(sorted(set(context.cached_steps))),
            diffs={int(step): diff for step, diff in context.residual_diffs.items()},
            cfg_cached_steps=tuple(sorted(set(context.cfg_cached_steps))),
            cfg_diffs={int(step): diff for step, diff in context.cfg_residual_diffs.items()},
            reused_blocks=_reused_blocks(context, self._blocks(context.name)),
        )

    def _stats(self, context_name: str) -> BlockListStats:
        assert self._on is not None
        transformer, block_list = self._origin(context_name)
        stats = BlockListStats(
            transformer=transformer,
            block_list=block_list + context_name.removeprefix(context_of_all_passes(context_name)),
            cached_steps=[],
            diffs={},
            cfg_cached_steps=[],
            cfg_diffs={},
            blocks=0,
            reused_blocks=0,
        )
        begun = 0  # each segment counts its steps from 0
        for segment in self._segments(context_name):
            stats.cached_steps += [begun + step for step in segment.cached_steps]
            stats.cfg_cached_steps += [begun + step for step in segment.cfg_cached_steps]
            stats.diffs |= {begun + step: diff for step, diff in segment.diffs.items()}
            stats.cfg_diffs |= {begun + step: diff for step, diff in segment.cfg_diffs.items()}
            stats.blocks += segment.forward_passes * self._blocks(context_name)
            stats.reused_blocks += segment.reused_blocks
            begun += segment.executed_steps
        return stats

    def _install(self, pipe: DiffusionPipeline, cache_type: CacheType, blocks: dict[str, int]) -> _Installation:
        """Enable a type so that each call's settings go into its contexts, and leave its patch off. Fills `blocks`."""
        found: dict[str, Any] = {}

        def enable() -> None:
            blocks.update(block_lists(pipe))
            # cache-dit 1.5.3 patches the pipeline's class: a class of its own keeps every other pipeline as it was.
            cls = type(pipe)
            pipe.__class__ = type(cls.__name__, (cls,), {"__module__": cls.__module__})
            cache_dit.enable_cache(pipe, cache_config=CONFIGS[cache_type](Fn_compute_blocks=1))
            found["manager"] = pipe._context_manager
            found["origins"] = origins = _context_origins(pipe)
            found["blocks"] = {context: blocks[".".join(origin)] for context, origin in origins.items()}

        patch = Patch(pipe, enable)
        installation = _Installation(patch, **found)
        self._fill_contexts(installation.manager)
        return installation

    def _fill_contexts(self, manager: Any) -> None:
        """Wrap the manager's `reset_context` so that every new context gets the settings of the coming call."""
        if isinstance(manager, PrunedContextManager):
            # cache-dit 1.5.3 caches its answer by the number of blocks alone: Fn, Bn and non_prune_block_ids of the
            # first call would hold for every later one.
            uncached = inspect.unwrap(PrunedContextManager.get_non_prune_blocks_ids)
            manager.get_non_prune_blocks_ids = MethodType(uncached, manager)
        reset_context = manager.reset_context

        def reset_with_settings(context: Any, *args: Any, **kwargs: Any) -> Any:
            if self._call is not None:
                if not isinstance(context, str):  # a forced refresh within the call
                    self._call.left.setdefault(context.name, []).append(self._segment(context))
                else:  # cache-dit does not know contexts of a single pass, and would keep those of the call before
                    for name in self._manager_contexts():
                        if name != context and context_of_all_passes(name) == context:
                            manager.remove_context(name)
                settings = self._call.settings.of(*self._origin(context if isinstance(context, str) else context.name))
                config, calibrator = copy.deepcopy(cache_dit_configs(settings))
                # cache-dit loops over the warm-up's steps at every step.
                config.max_warmup_steps = min(config.max_warmup_steps, self._call.steps)
                config.steps_computation_mask = settings.mask(self._call.steps)
                config.enable_separate_cfg = self._call.own_passes == 2
                if config.force_refresh_step_hint is not None:  # it counts forward passes
                    share = self._call.passes // self._call.own_passes
                    config.force_refresh_step_hint = max(1, config.force_refresh_step_hint // share)
                kwargs |= {"cache_config": config, "calibrator_config": calibrator}
            return reset_context(context, *args, **kwargs)

        manager.reset_context = reset_with_settings


def block_lists(pipe: DiffusionPipeline) -> dict[str, int]:
    """Return the number of blocks in each list that the cache spans, by `component.list`.

    Side effect: cache-dit patches some families' transformer.
    """
    adapter = BlockAdapter.normalize(BlockAdapterRegister.get_adapter(pipe))
    components = {id(module): name for name, module in pipe.components.items()}
    counts: dict[str, int] = {}
    for transformer, blocks, names in zip(adapter.transformer, adapter.blocks, adapter.blocks_name, strict=True):
        for block_list, name in zip(blocks, names, strict=True):
            counts[f"{components[id(transformer)]}.{name}"] = len(block_list)
    return counts


@functools.lru_cache(maxsize=256)
def cache_dit_configs(settings: CacheSettings) -> tuple[Any, Any]:
    """Return the settings as cache-dit's `(cache_config, calibrator_config)`, without the mask.

    The result is shared by later calls: copy it before changing it.
    """
    keys = settings.model_dump(exclude_none=True, exclude={"num_inference_steps", "steps_computation_mask", *PARTS})
    keys["non_prune_block_ids"] = list(settings.non_prune_block_ids)
    if settings.enable_dmd and settings.enable_encoder_dmd is None:
        keys["enable_encoder_dmd"] = True
    loaded = cache_dit.load_configs({"cache_config": keys})
    config = loaded["cache_config"]
    # cache-dit 1.5.3 leaves the type as the string it read, and then fails on it.
    config.cache_type = cache_dit.CacheType[settings.cache_type]
    return config, loaded["calibrator_config"]


def _context_origins(pipe: DiffusionPipeline) -> dict[str, tuple[str, str]]:
    return {
        context: (component, context.rpartition("_")[0])
        for component, module in pipe.components.items()
        for context in getattr(module, "_context_names", ())
    }


def _reused_blocks(context: Any, count: int) -> int:
    """Return the number of block runs that one context reused, in a list of `count` blocks."""
    if isinstance(context, PrunedContext):
        return sum(context.pruned_blocks) + sum(context.cfg_pruned_blocks)
    config = context.cache_config
    passes = len(context.cached_steps) + len(context.cfg_cached_steps)
    return passes * (count - config.Fn_compute_blocks - config.Bn_compute_blocks)


def _tensors(value: Any, seen: set[int]) -> Iterator[torch.Tensor]:
    """Yield every tensor reachable from `value` through containers and cache-dit's own objects."""
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
