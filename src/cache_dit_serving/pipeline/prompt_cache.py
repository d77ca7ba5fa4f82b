"""Cache of prompt embeddings, so that a prompt is not encoded twice.

diffusers' pipelines encode in their method `encode_prompt`, which reads nothing but its arguments and the weights. Its
result can be reused for equal arguments: equal values, and for images equal pixels. A call with an argument of
another kind (a tensor, a generator) is not cached. Callers do not share entries: a hit, or its time, would reveal to
one caller that another sent the same prompt.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from PIL import Image

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from cache_dit_serving.pipeline.prompts import Heard

PLAIN = (str, int, float, bool, type(None), torch.dtype, torch.device)


class _NotKept(Exception):
    """Error for a value that cannot be part of a key, or cannot be cached."""


class Entry(NamedTuple):
    """Cached result of a call of `encode_prompt`."""

    value: Any
    heard: tuple[Heard, ...]
    """Calls of tokenizers that it made."""
    bytes: int


@dataclass
class Use:
    """Number of `encode_prompt` calls for one output: found in the cache, added to it, or not cacheable."""

    hits: int = 0
    misses: int = 0
    not_kept: int = 0


class PromptCache:
    """Cache of the embeddings used last, bounded by their bytes on the device."""

    def __init__(self, most_bytes: int, encoder_loras: Callable[[], Hashable]) -> None:
        """
        Args:
            most_bytes: bound on the embeddings' bytes; 0: nothing is cached.
            encoder_loras: function that returns the text encoders' active LoRAs.
        """
        self._most_bytes = most_bytes
        self._encoder_loras = encoder_loras
        self._entries: OrderedDict[Hashable, Entry] = OrderedDict()
        self._heard: list[Heard] = []
        self._use = Use()
        self._caller = ""
        self.held_bytes = 0

    def install(self, pipe: DiffusionPipeline) -> None:
        """Wrap a pipeline's `encode_prompt` with this cache; a pipeline without that method is left as it is."""
        encode = getattr(pipe, "encode_prompt", None)
        if encode is None or not self._most_bytes:
            return
        signature = inspect.signature(encode)

        @functools.wraps(encode)
        def encode_prompt(*args: Any, **kwargs: Any) -> Any:
            try:
                bound = signature.bind(*args, **kwargs)
                bound.apply_defaults()
                key = (self._caller, type(pipe).__name__, self._encoder_loras(), _key(dict(bound.arguments)))
            except (_NotKept, TypeError):
                self._use.not_kept += 1
                return encode(*args, **kwargs)
            if (entry := self._entries.get(key)) is not None:
                self._entries.move_to_end(key)
                self._use.hits += 1
                self._heard.extend(entry.heard)
                return _copied(entry.value)
            self._use.misses += 1
            before = len(self._heard)
            value = encode(*args, **kwargs)
            self._keep(key, value, tuple(self._heard[before:]))
            return value

        pipe.encode_prompt = encode_prompt

    @contextmanager
    def used(self, heard: list[Heard], caller: str = "") -> Iterator[Use]:
        """Count the calls of `encode_prompt` in the body.

        Args:
            caller: name of the caller whose prompts are encoded.
            heard: list of the tokenizers' calls in the body. A hit adds the calls that were made for its entry.
        """
        self._use, self._heard, self._caller = Use(), heard, caller
        yield self._use

    def flush(self) -> int:
        """Free all embeddings; returns their bytes."""
        freed, self.held_bytes = self.held_bytes, 0
        self._entries.clear()
        return freed

    def _keep(self, key: Hashable, value: Any, heard: tuple[Heard, ...]) -> None:
        try:
            kept = _copied(value)
        except _NotKept:
            return
        size = _bytes(kept)
        if size > self._most_bytes:
            return
        self._entries[key] = Entry(kept, heard, size)
        self.held_bytes += size
        while self.held_bytes > self._most_bytes:
            _, oldest = self._entries.popitem(last=False)
            self.held_bytes -= oldest.bytes


def _key(value: Any) -> Hashable:
    """Return a key for an argument's value; keys are equal only for equal values.

    Raises:
        _NotKept: the value is of a kind that has no key.
    """
    if isinstance(value, PLAIN):
        return (type(value).__name__, value)  # True and 1 are equal, but different arguments
    if isinstance(value, list | tuple):
        return (type(value).__name__, *map(_key, value))
    if isinstance(value, dict):
        return ("dict", *((name, _key(each)) for name, each in value.items()))
    if isinstance(value, Image.Image):
        return ("picture", value.mode, value.size, hashlib.sha256(value.tobytes()).digest())
    raise _NotKept


def _copied(value: Any) -> Any:
    """Return a deep copy with cloned tensors, since pipelines may change tensors in place.

    Raises:
        _NotKept: the value holds something other than tensors and plain values.
    """
    if isinstance(value, torch.Tensor):
        return value.clone()
    if type(value) in (list, tuple):
        return type(value)(map(_copied, value))
    if type(value) is dict:
        return {name: _copied(each) for name, each in value.items()}
    if isinstance(value, PLAIN):
        return value
    raise _NotKept


def _bytes(value: Any) -> int:
    if isinstance(value, torch.Tensor):
        return value.nbytes
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return sum(map(_bytes, parts))
