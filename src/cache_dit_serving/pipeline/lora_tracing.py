"""Tensors that know which tensors of a file they are made of, to find those that a conversion leaves out.

diffusers' conversions log what they cannot use, or drop it silently: text encoders, biases, magnitudes and alphas.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch


class TracedTensor(torch.Tensor):  # type: ignore[misc]  # torch leaves it untyped
    """A tensor and the names of those that it was computed from."""

    sources: frozenset[str]
    read: set[str]
    """Names of the file's tensors whose value was read as a number: alphas, and those that were compared with zero."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        traced = [each for each in _flat([*args, *(kwargs or {}).values()]) if isinstance(each, TracedTensor)]
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
        sources = frozenset[str]().union(*(getattr(each, "sources", ()) for each in traced))
        read = next((each.read for each in traced if hasattr(each, "read")), set[str]())
        if func in (torch.Tensor.item, torch.Tensor.__float__):
            read |= sources
        if isinstance(result, torch.Tensor):
            return _marked(result, sources, read)
        if type(result) in (list, tuple):
            return type(result)(_marked(x, sources, read) if isinstance(x, torch.Tensor) else x for x in result)
        return result


def traced(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the same tensors, each of which knows its name."""
    read: set[str] = set()
    return {name: _marked(tensor, frozenset({name}), read) for name, tensor in tensors.items()}


def plain(value: Any) -> Any:
    """Return a value of a conversion with ordinary tensors in place of traced ones."""
    if isinstance(value, Mapping):
        return {name: plain(each) for name, each in value.items()}
    if not isinstance(value, TracedTensor):
        return value
    with torch._C.DisableTorchFunctionSubclass():
        return value.as_subclass(torch.Tensor)


def used(converted: Iterable[Any]) -> set[str]:
    """Return the names of the tensors that the converted ones are made of, and of the alphas that were read."""
    names: set[str] = set()
    for tensor in converted:
        if isinstance(tensor, TracedTensor):
            names |= tensor.sources | {name for name in tensor.read if name.endswith("alpha")}
    return names


def _marked(tensor: torch.Tensor, sources: frozenset[str], read: set[str]) -> TracedTensor:
    marked: TracedTensor = tensor if isinstance(tensor, TracedTensor) else tensor.as_subclass(TracedTensor)
    marked.sources = getattr(marked, "sources", frozenset()) | sources
    marked.read = read
    return marked


def _flat(values: Sequence[Any]) -> list[Any]:
    return [each for value in values for each in (_flat(value) if isinstance(value, list | tuple) else [value])]
