"""Arguments and results of a transformer's forward pass, taken apart and put together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils import _pytree as pytree


class Arguments(NamedTuple):
    """Arguments of a forward pass."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def by_name(self) -> dict[int | str, Any]:
        """Return each argument by its position or its name."""
        named: dict[int | str, Any] = dict(enumerate(self.args))
        return named | self.kwargs

    def part(self, groups: int, group: int) -> Arguments | None:
        """Return a group's part of a batch; None if the arguments are no batch that can be dealt out.

        One output is drawn at a time, so a batch of several samples has one for each prediction of guidance.
        """
        states: Any = self.args[0] if self.args else next(iter(self.kwargs.values()), None)
        states = self.kwargs.get("hidden_states", states)
        size = len(states) if isinstance(states, list) else states.shape[0] if _has_batch(states) else 1
        if size == 1 or size % groups:
            return None
        begin = size // groups * group
        kept = slice(begin, begin + size // groups)
        return Arguments(_part(self.args, size, kept), _part(self.kwargs, size, kept))

    def like(self, first: Arguments, own: dict[int | str, Recipe]) -> Arguments:
        """Return arguments of the same names, made of those of a step's first pass by recipes."""
        given = first.by_name()
        made = {name: recipe(given.get(name)) for name, recipe in own.items()}
        return Arguments(
            tuple(made[index] for index in range(len(self.args))), {name: made[name] for name in self.kwargs}
        )


Recipe = Callable[[Any], Any]
"""Function that makes an argument of a later pass from the first pass's argument of the same name."""


def recipes(first: Arguments, later: Arguments) -> dict[int | str, Recipe]:
    """Return how each argument of a later pass follows from those of the first one, as seen in one step.

    An argument is that of the first pass, or a part of its batch; one that is neither stays as it is.
    """
    given = first.by_name()
    return {name: _recipe(given.get(name), value) for name, value in later.by_name().items()}


def _recipe(first: Any, later: Any) -> Recipe:
    if bool(agrees(first, later)):
        return lambda value: value
    if _has_batch(first) and _has_batch(later) and later.shape[0] and first.shape[0] % later.shape[0] == 0:
        count = first.shape[0] // later.shape[0]
        for index, chunk in enumerate(first.chunk(count)):
            if bool(agrees(chunk, later)):
                return lambda value: value.chunk(count)[index]
    return lambda value: later


def agrees(one: Any, other: Any) -> torch.Tensor | bool:
    """Return whether two arguments hold the same values; a tensor on their device if only the device knows."""
    if one is other:
        return True
    ones, structure = pytree.tree_flatten(one)
    others, other_structure = pytree.tree_flatten(other)
    if structure != other_structure:
        return False
    found: torch.Tensor | bool = True
    for left, right in zip(ones, others, strict=True):
        if isinstance(left, torch.Tensor) != isinstance(right, torch.Tensor):
            return False
        if not isinstance(left, torch.Tensor):
            if left is not right and not bool(left == right):
                return False
        elif left is not right:
            if left.shape != right.shape or left.dtype != right.dtype or left.device != right.device:
                return False
            same = (left == right).all()
            found = same if found is True else found & same
    return found


class Result(NamedTuple):
    """Result of a forward pass: its tensors, and what is around them."""

    tensors: list[torch.Tensor]
    leaves: list[Any]
    """Leaves of the result; a mark in the place of each tensor."""
    structure: Any

    @classmethod
    def of(cls, forward: Callable[..., Any], arguments: Arguments) -> Result:
        """Make a forward pass; return its result."""
        leaves, structure = pytree.tree_flatten(forward(*arguments.args, **arguments.kwargs))
        tensors = [leaf.contiguous() for leaf in leaves if isinstance(leaf, torch.Tensor)]
        return cls(tensors, [TENSOR if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves], structure)

    @classmethod
    def empty(cls, described: Any, device: torch.device) -> Result:
        """Return a result without values.

        Args:
            described: what :meth:`described` returned of one of the same shapes, here or on another rank.
        """
        shapes, leaves, structure = described
        return cls([_without_values(shape, dtype, device) for shape, dtype in shapes], leaves, structure)

    def described(self) -> Any:
        """Return shapes and structure, without tensors."""
        return [(tuple(tensor.shape), tensor.dtype) for tensor in self.tensors], self.leaves, self.structure

    def like(self) -> Result:
        """Return a result of the same shapes, to be filled."""
        return self._replace(tensors=[torch.empty_like(tensor) for tensor in self.tensors])

    def whole(self) -> Any:
        """Return the result as the forward pass returned it."""
        tensors = iter(self.tensors)
        leaves = [next(tensors) if isinstance(leaf, str) and leaf == TENSOR else leaf for leaf in self.leaves]
        return pytree.tree_unflatten(leaves, self.structure)


TENSOR = "a tensor"
BATCH_SECOND = frozenset({"encoder_hidden_states_llama3"})
"""Arguments whose first dimension is not the batch but layers of a text encoder (HiDream)."""


def joined(parts: Sequence[Any]) -> Any:
    """Return the result of a batch from the results of its parts, in order."""
    first = parts[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(list(parts)) if first.dim() else first
    if isinstance(first, list):
        return [each for part in parts for each in part]
    if isinstance(first, dict):  # diffusers' outputs are dictionaries too
        return type(first)(**{name: joined([part[name] for part in parts]) for name in first})
    if isinstance(first, tuple):
        return tuple(joined(each) for each in zip(*parts, strict=True))
    return first


def _without_values(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return a tensor of NaN: a pipeline that reads it before it is filled shows so in its output."""
    return torch.full(shape, float("nan") if dtype.is_floating_point else 0, dtype=dtype, device=device)


def _has_batch(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() > 0


def _part(value: Any, size: int, kept: slice) -> Any:
    """Return the kept samples of each tensor and list that has one entry for each sample of a batch."""
    if isinstance(value, dict):
        return {
            name: each[:, kept] if name in BATCH_SECOND and each.shape[1] == size else _part(each, size, kept)
            for name, each in value.items()
        }
    if isinstance(value, tuple):
        return tuple(_part(each, size, kept) for each in value)
    if isinstance(value, list):
        # Residuals of a ControlNet are a list of batches; other lists have an entry for each sample.
        batches = all(_has_batch(each) and each.shape[0] == size for each in value)
        return value[kept] if len(value) == size and not batches else [_part(each, size, kept) for each in value]
    return value[kept] if _has_batch(value) and value.shape[0] == size else value
