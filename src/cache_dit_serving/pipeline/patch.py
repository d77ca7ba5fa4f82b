"""What enabling the cache changes on a pipeline, kept so that it can be taken off and put back in microseconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

_ABSENT = object()


class Patch:
    """The attributes that `apply` sets on a pipeline and its modules, and the pipeline's class.

    cache-dit replaces `forward` of a transformer (for some families of its blocks too), adds attributes beside it, and
    patches the pipeline's class. Taking all of that off restores the pipeline as it was loaded, which
    `cache_dit.disable_cache` does not for the families that it gives another `forward`.

    What others set on the same attributes in between is not kept: accelerate's offload hooks wrap `forward` too, and
    must be in place before, and stay.
    """

    def __init__(self, pipe: DiffusionPipeline, apply: Callable[[], None]) -> None:
        """Apply and record; the pipeline is left without the patch, also when `apply` raises."""
        self._pipe = pipe
        self._class_before = type(pipe)
        owners = [pipe, *(module for part in _modules(pipe) for module in part.modules())]
        before = [dict(vars(owner)) for owner in owners]
        self._changes: list[tuple[dict[str, Any], str, Any, Any]] = []
        self._class_after = self._class_before
        try:
            apply()
        finally:
            self._class_after = type(pipe)
            for owner, old in zip(owners, before, strict=True):
                attributes = vars(owner)
                for name in old.keys() | attributes.keys():
                    was, is_now = old.get(name, _ABSENT), attributes.get(name, _ABSENT)
                    if was is not is_now:
                        self._changes.append((attributes, name, was, is_now))
            self.take_off()

    def put_on(self) -> None:
        self._pipe.__class__ = self._class_after
        for attributes, name, _, value in self._changes:
            _set(attributes, name, value)

    def take_off(self) -> None:
        self._pipe.__class__ = self._class_before
        for attributes, name, value, _ in self._changes:
            _set(attributes, name, value)


def _modules(pipe: DiffusionPipeline) -> list[torch.nn.Module]:
    return [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]


def _set(attributes: dict[str, Any], name: str, value: Any) -> None:
    if value is _ABSENT:
        attributes.pop(name, None)
    else:
        attributes[name] = value
