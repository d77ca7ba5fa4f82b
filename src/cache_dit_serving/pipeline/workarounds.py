"""Families that cache-dit 1.5.3 cannot run although its cache could, and the least that makes them run.

The suite holds each to making the same through a cache that reuses nothing as without one. Tests fail as soon as a
work-around is no longer needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from cache_dit import BlockAdapter, ForwardPattern
from cache_dit.caching.block_adapters import BlockAdapterRegister, adapters
from cache_dit.caching.patch_functors import (
    Cosmos3OmniPatchFunctor,
    FluxPatchFunctor,
    LTX2PatchFunctor,
    PatchFunctor,
    QwenImageControlNetPatchFunctor,
    ZImageControlNetPatchFunctor,
)

from cache_dit_serving.pipeline.own_forward import (
    FROM_THE_SECOND,
    SPREAD,
    SPREAD_EVENLY,
    Residuals,
    keep_ltx2s_own_forward,
    keep_own_forward,
)

LATER_CLASSES = frozenset(
    {
        "HunyuanVideoFramepackTransformer3DModel",
        "JoyImageEditPlusTransformer3DModel",
        "SanaVideoTransformer3DModel",
        "StableAudio3DiTModel",
    }
)
"""Transformers of families that cache-dit 1.5.3 knows, of classes that it refuses: diffusers has added them since, and
their blocks are called as the family's are."""
OUTGROWN = {Cosmos3OmniPatchFunctor: "return_dict", ZImageControlNetPatchFunctor: "joint_attention_kwargs"}
"""Families that cache-dit 1.5.3 gives a copy of an older forward, and what diffusers 0.42 calls theirs with since."""
UNFIT = {"Flux2KleinKVPipeline": "each block keeps keys and values of its own, and cache-dit runs all blocks as one"}
"""Pipelines that would make something else through the cache even where it reuses nothing."""
Apply = Callable[..., torch.nn.Module]
Adapt = Callable[..., BlockAdapter]
_shipped: dict[Any, Any] = {}
"""What the work-arounds stand in for."""
_shipped_assert = adapters._relaxed_assert


def install() -> None:
    """Put the work-arounds in force in this process, which they are for good."""
    if _shipped:
        return
    adapters._relaxed_assert = allow_later_classes
    _stand_in(LTX2PatchFunctor, lambda functor, transformer, **options: keep_ltx2s_own_forward(transformer))
    for functor in (FluxPatchFunctor, QwenImageControlNetPatchFunctor):
        _stand_in(functor, lambda functor, transformer, **options: keep_own_forward(transformer, SPREAD))
    for functor, keyword in OUTGROWN.items():
        _stand_in(functor, _without_keyword(functor._apply, keyword))
    for family, adapt in {
        "Bria": _prompt_first,
        "Sana": _with_own_forward(FROM_THE_SECOND),
        "StableDiffusion3": _with_own_forward(SPREAD_EVENLY),
    }.items():
        _shipped[family] = BlockAdapterRegister._adapters[family]
        BlockAdapterRegister._adapters[family] = _adapted(_shipped[family], adapt)


def _stand_in(functor: Any, apply: Apply) -> None:
    _shipped[functor] = functor._apply
    functor._apply = apply


def _adapted(shipped: Adapt, adapt: Callable[[BlockAdapter], None]) -> Adapt:
    def adapter_of(pipe: Any, **kwargs: Any) -> BlockAdapter:
        adapter = shipped(pipe, **kwargs)
        adapt(adapter)
        return adapter

    return adapter_of


def allow_later_classes(transformer: torch.nn.Module, allow_classes: Any = None) -> None:
    """cache-dit's own check of a transformer's class, passed by `LATER_CLASSES`.

    Raises:
        AssertionError: it is another class than the family's.
    """
    if type(transformer).__name__ not in LATER_CLASSES:
        _shipped_assert(transformer, allow_classes)


def _prompt_first(adapter: BlockAdapter) -> None:
    """Bria: its blocks return the prompt's states first, and cache-dit 1.5.3 takes them for the picture's."""
    adapter.forward_pattern = [ForwardPattern.Pattern_1, ForwardPattern.Pattern_1]


def _with_own_forward(residuals: Sequence[Residuals]) -> Callable[[BlockAdapter], None]:
    """Families whose forward cache-dit 1.5.3 leaves to add the first residual alone."""

    def adapt(adapter: BlockAdapter) -> None:
        transformer = adapter.pipe.transformer
        if "SanaVideo" not in type(transformer).__name__:
            keep_own_forward(transformer, residuals)

    return adapt


def _without_keyword(apply: Apply, keyword: str) -> Apply:
    """A functor's `_apply` whose forward leaves out an argument of diffusers' that has no say here."""

    def apply_without(functor: PatchFunctor, transformer: torch.nn.Module, **options: Any) -> torch.nn.Module:
        patched = apply(functor, transformer, **options)
        forward = patched.forward

        def forward_without(*args: Any, **kwargs: Any) -> Any:
            if kwargs.pop(keyword, None):
                raise TypeError(f"{keyword} cannot be given where the cache runs the transformer")
            return forward(*args, **kwargs)

        patched.forward = forward_without
        return patched

    return apply_without
