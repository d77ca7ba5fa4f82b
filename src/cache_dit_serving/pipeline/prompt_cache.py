"""Prompt embeddings that are kept: a prompt that was encoded is not encoded again.

diffusers' pipelines encode in their method `encode_prompt`, which reads nothing but its arguments and the weights. So
what it returned stands for the same arguments: their values, and of pictures their pixels. Where an argument is
anything else (a tensor, a generator) nothing is kept. Each caller's are apart: a hit, or its time, would tell one
caller that another sent the same prompt.
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
    """A value that cannot be part of a key, or be kept."""


class Entry(NamedTuple):
    """What a call of `encode_prompt` made."""

    value: Any
    heard: tuple[Heard, ...]
    """What its tokenizers were asked."""
    bytes: int


@dataclass
class Use:
    """Calls of `encode_prompt` while an output was drawn, by how they ended."""

    hits: int = 0
    misses: int = 0
    not_kept: int = 0


class PromptCache:
    """Embeddings of the prompts used last, as many as fit into a number of bytes on the device."""

    def __init__(self, most_bytes: int, encoder_loras: Callable[[], Hashable]) -> None:
        """
        Args:
            most_bytes: 0: nothing is kept.
            encoder_loras: those that the text encoders run with now.
        """
        self._most_bytes = most_bytes
        self._encoder_loras = encoder_loras
        self._entries: OrderedDict[Hashable, Entry] = OrderedDict()
        self._heard: list[Heard] = []
        self._use = Use()
        self._caller = ""
        self.held_bytes = 0

    def install(self, pipe: DiffusionPipeline) -> None:
        """Have a pipeline ask here before it encodes; one whose class has no `encode_prompt` stays as it is."""
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
        """Count the calls meanwhile.

        Args:
            caller: name of the caller whose prompts are encoded.
            heard: what tokenizers are asked meanwhile; of embeddings that were kept, what they had been asked is added.
        """
        self._use, self._heard, self._caller = Use(), heard, caller
        yield self._use

    def flush(self) -> int:
        """Free them all; returns their bytes."""
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
    """A value that is equal for equal arguments alone.

    Raises:
        _NotKept: there is none.
    """
    if isinstance(value, PLAIN):
        return (type(value).__name__, value)  # True is not 1
    if isinstance(value, list | tuple):
        return (type(value).__name__, *map(_key, value))
    if isinstance(value, dict):
        return ("dict", *((name, _key(each)) for name, each in value.items()))
    if isinstance(value, Image.Image):
        return ("picture", value.mode, value.size, hashlib.sha256(value.tobytes()).digest())
    raise _NotKept


def _copied(value: Any) -> Any:
    """The same values in tensors of their own: pipelines may change theirs in place.

    Raises:
        _NotKept: there is something else than tensors and plain values in it.
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
