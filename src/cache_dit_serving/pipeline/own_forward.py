"""Transformers that keep their own forward while cache-dit runs their blocks as one.

cache-dit puts one module in the place of a list of blocks. What a transformer does between its blocks, or to one of
them by its number, then happens once, and for the first: the residuals of a ControlNet, the blocks that guidance skips
or perturbs. cache-dit 1.5.3 gives some families a copy of their forward that sees to it, and diffusers has outgrown
the copies; others it leaves to go wrong (Flux, Stable Diffusion 3 and Sana with a ControlNet). Here the blocks do it
themselves, by hooks that hold for one forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch

LTX2_STREAMS = ("hidden_states", "audio_hidden_states", "encoder_hidden_states", "audio_encoder_hidden_states")
"""What each block of LTX-2 is given first, in the order of its signature: the streams of video and sound, and their
prompts."""
STREAMS = ("hidden_states", "encoder_hidden_states")
"""What each block of the other families is given first."""
PASS = "/"
"""Between a context's name and that of a pass."""


class Residuals(NamedTuple):
    """What a ControlNet adds to the picture's states after each block."""

    keyword: str
    """The argument of the transformer's forward that holds them."""
    blocks: str
    """The transformer's list of blocks."""
    of_block: Callable[[int, int, int], int]
    """Which of them is a block's, by its index, the number of blocks and the number of residuals; negative: none."""


def _spread(index: int, blocks: int, residuals: int) -> int:
    return index // math.ceil(blocks / residuals)


def _spread_evenly(index: int, blocks: int, residuals: int) -> int:
    return int(index / (blocks / residuals))


def _from_the_second(index: int, blocks: int, residuals: int) -> int:
    return index - 1 if index <= residuals else -1


SPREAD = (
    Residuals("controlnet_block_samples", "transformer_blocks", _spread),
    Residuals("controlnet_single_block_samples", "single_transformer_blocks", _spread),
)
"""Of Flux and Qwen-Image."""
SPREAD_EVENLY = (Residuals("block_controlnet_hidden_states", "transformer_blocks", _spread_evenly),)
"""Of Stable Diffusion 3."""
FROM_THE_SECOND = (Residuals("controlnet_block_samples", "transformer_blocks", _from_the_second),)
"""Of Sana."""


def keep_own_forward(transformer: torch.nn.Module, residuals: Sequence[Residuals]) -> torch.nn.Module:
    """Have each block add its residual, and skip itself, as the transformer's own forward would have it."""
    own_forward = type(transformer).forward
    lists = {each.blocks: list(getattr(transformer, each.blocks, ())) for each in residuals}

    def forward(*args: Any, **kwargs: Any) -> Any:
        repeated = kwargs.pop("controlnet_blocks_repeat", False)
        skipped = set(kwargs.pop("skip_layers", None) or ())
        with ExitStack() as stack:
            for each in residuals:
                given, blocks = kwargs.pop(each.keyword, None), lists[each.blocks]
                for index, block in enumerate(blocks):
                    if index in skipped:
                        stack.callback(block.register_forward_hook(_as_it_came, with_kwargs=True).remove)
                    if given is None or getattr(block, "context_pre_only", False):
                        continue
                    own = each.of_block(index, len(blocks), len(given))
                    if repeated and each is residuals[0]:
                        own = index % len(given)
                    if own >= 0:
                        stack.callback(block.register_forward_hook(_plus(given[own])).remove)
            return own_forward(transformer, *args, **kwargs)

    transformer.forward = forward
    transformer._is_patched = True
    return transformer


def _plus(residual: torch.Tensor) -> Callable[..., Any]:
    def add(block: torch.nn.Module, args: Any, output: Any) -> Any:
        if isinstance(output, torch.Tensor):
            return output + residual
        prompt, hidden_states = output
        return prompt, hidden_states + residual

    return add


def _as_it_came(block: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    """Of a skipped block, whose own work is thrown away."""
    hidden_states, prompt, *_ = (*args, *(kwargs[name] for name in STREAMS if name in kwargs))
    return prompt, hidden_states


def keep_ltx2s_own_forward(transformer: torch.nn.Module) -> torch.nn.Module:
    """LTX-2: cache-dit 1.5.3 gives the transformer a copy of an older forward, which does not know `sigma`,
    `isolate_modalities` and what else diffusers 0.42 calls it with.

    The copy is there because the cache takes a block's streams by position and the transformer gives them by name. So
    here the transformer keeps its own forward, and the names become positions on the way into the blocks. To that
    forward all blocks together are the first one: which of them its guidance perturbs is told to each by itself.

    A step makes up to three passes: with the prompt and without (one batch), perturbed, and with video and sound kept
    apart. Each compares itself with the same pass of the step before, in a context of its own.
    """
    own_forward = type(transformer).forward
    blocks = list(transformer.transformer_blocks)

    def forward(*args: Any, spatio_temporal_guidance_blocks: list[int] | None = None, **kwargs: Any) -> Any:
        perturbed = set(spatio_temporal_guidance_blocks or ())
        guidance = "perturbed" if perturbed else "isolated" if kwargs.get("isolate_modalities") else None
        together = list(transformer.transformer_blocks)
        with ExitStack() as stack:
            for block in together:
                hook = block.register_forward_pre_hook(_streams_by_position, with_kwargs=True)
                stack.callback(hook.remove)
                if guidance is not None:
                    stack.enter_context(_in_pass(block, guidance))
            for index, block in enumerate(blocks):
                if perturbed and index not in perturbed:
                    stack.callback(block.register_forward_pre_hook(_unperturbed, with_kwargs=True).remove)
            first = [0] if perturbed else None
            return own_forward(transformer, *args, spatio_temporal_guidance_blocks=first, **kwargs)

    transformer.forward = forward
    transformer._is_patched = True
    return transformer


def context_of_all_passes(context: str) -> str:
    """The context that cache-dit makes, of one for a single pass of it."""
    return context.partition(PASS)[0]


@contextmanager
def _in_pass(blocks: Any, name: str) -> Iterator[None]:
    """Have cache-dit's blocks use a context for one pass, made when the pass is first run in a call."""
    of_all = blocks.cache_context
    blocks.cache_context = f"{of_all}{PASS}{name}"
    manager = blocks.context_manager
    if blocks.cache_context not in manager._cached_context_manager:
        manager.reset_context(blocks.cache_context)
    try:
        yield
    finally:
        blocks.cache_context = of_all


Call = tuple[tuple[Any, ...], dict[str, Any]]


def _streams_by_position(block: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    streams = tuple(kwargs.pop(name) for name in LTX2_STREAMS if name in kwargs)
    return (*args, *streams), kwargs


def _unperturbed(block: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    return args, kwargs | {"perturbation_mask": None, "all_perturbed": False}
