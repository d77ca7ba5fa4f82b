"""Transformers that keep their own forward while cache-dit runs their blocks as one.

cache-dit puts one module in the place of a list of blocks. A transformer's work between its blocks, or on a block of a
given number, is then done once, for the first block. This breaks the residuals of a ControlNet, and the blocks that
guidance skips or perturbs. cache-dit 1.5.3 gives some families a copy of their forward that handles it, but diffusers
has changed these forwards since. For others it has none, and their outputs are wrong (Flux, Stable Diffusion 3 and Sana
with a ControlNet). Here hooks on the blocks do this work; they are removed after each forward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch

LTX2_STREAMS = ("hidden_states", "audio_hidden_states", "encoder_hidden_states", "audio_encoder_hidden_states")
"""First arguments of each block of LTX-2, in the order of its signature: the streams of video and sound, and of their
prompts."""
STREAMS = ("hidden_states", "encoder_hidden_states")
"""First arguments of each block of the other families, in the order of its signature."""
PASS = "/"
"""Separator between a context's name and a pass's name."""


class Residuals(NamedTuple):
    """Residuals of a ControlNet, which are added to the image's states after each block of one list."""

    keyword: str
    """Argument of the transformer's forward that holds the residuals."""
    blocks: str
    """Attribute of the transformer that holds the list of blocks."""
    of_block: Callable[[int, int, int], int]
    """Function (block's index, number of blocks, number of residuals) -> index of its residual; negative: none."""


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
"""Residuals of Flux and Qwen-Image: one for each group of consecutive blocks, of a whole number of blocks."""
SPREAD_EVENLY = (Residuals("block_controlnet_hidden_states", "transformer_blocks", _spread_evenly),)
"""Residuals of Stable Diffusion 3: spread evenly over the blocks."""
FROM_THE_SECOND = (Residuals("controlnet_block_samples", "transformer_blocks", _from_the_second),)
"""Residuals of Sana: one for each block from the second on."""


def keep_own_forward(transformer: torch.nn.Module, residuals: Sequence[Residuals]) -> torch.nn.Module:
    """Replace the transformer's forward by one that adds residuals to blocks and skips blocks by hooks on them.

    The result equals that of the class's own forward without a cache. Returns the transformer.
    """
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
    """Return a skipped block's inputs in place of its output, as a forward hook."""
    hidden_states, prompt, *_ = (*args, *(kwargs[name] for name in STREAMS if name in kwargs))
    return prompt, hidden_states


def keep_ltx2s_own_forward(transformer: torch.nn.Module) -> torch.nn.Module:
    """Let LTX-2's transformer keep its own forward. Returns the transformer.

    cache-dit 1.5.3 gives it a copy of an older forward, which lacks `sigma`, `isolate_modalities` and other arguments
    of diffusers 0.42. The copy exists because the cache takes a block's streams by position and the transformer passes
    them by name. Here a hook turns the names into positions. The transformer's forward sees all blocks as one block of
    index 0, so hooks on the blocks undo the perturbation of those that guidance does not perturb.

    A step makes up to three passes: with and without the prompt (one batch), perturbed, and with video and sound
    isolated. Each pass has a context of its own, and is compared with the same pass of the step before.
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
    """Return the name of cache-dit's own context, from that of a context for a single pass."""
    return context.partition(PASS)[0]


@contextmanager
def _in_pass(blocks: Any, name: str) -> Iterator[None]:
    """Make cache-dit's blocks use a context for one kind of pass; it is made when a call first makes this pass."""
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
