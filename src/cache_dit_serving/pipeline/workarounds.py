"""Work-arounds for families that cache-dit 1.5.3 cannot run although its cache could.

Tests check that each family's output through a cache that reuses nothing equals that without a cache. Tests also fail
once a work-around is no longer needed.
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
from cache_dit_serving.planning.families import component_of

OUTGROWN = {Cosmos3OmniPatchFunctor: "return_dict", ZImageControlNetPatchFunctor: "joint_attention_kwargs"}
"""Argument that diffusers 0.42 passes to a family's forward and that cache-dit 1.5.3's copy of the forward lacks."""
Apply = Callable[..., torch.nn.Module]
Adapt = Callable[..., BlockAdapter]
_shipped: dict[Any, Any] = {}
"""cache-dit's own functions and adapters that the work-arounds replace, by functor or family."""
_shipped_assert = adapters._relaxed_assert


def install() -> None:
    """Install the work-arounds in this process, permanently. Later calls do nothing."""
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
    """Run cache-dit's check of a transformer's class, except for classes that diffusers added later.

    Raises:
        AssertionError: the class is not one of the family's.
    """
    if not component_of(transformer).later_than_cache_dit:
        _shipped_assert(transformer, allow_classes)


def _prompt_first(adapter: BlockAdapter) -> None:
    """Set Bria's forward pattern: its blocks return the prompt's states first, the image's second.

    cache-dit 1.5.3 takes them in the other order.
    """
    adapter.forward_pattern = [ForwardPattern.Pattern_1, ForwardPattern.Pattern_1]


def _with_own_forward(residuals: Sequence[Residuals]) -> Callable[[BlockAdapter], None]:
    """Return an adaptation by which a transformer keeps its own forward and adds every residual.

    cache-dit 1.5.3 adds only the first one in these families.
    """

    def adapt(adapter: BlockAdapter) -> None:
        transformer = adapter.pipe.transformer
        if component_of(transformer).takes_residuals:
            keep_own_forward(transformer, residuals)

    return adapt


def _without_keyword(apply: Apply, keyword: str) -> Apply:
    """Return a functor's `_apply` whose forward drops an argument of diffusers that cache-dit's copy lacks.

    The forward raises TypeError if the argument has a true value, which would take effect in diffusers.
    """

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
