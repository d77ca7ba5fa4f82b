"""Record of the changes that enabling the cache makes to a pipeline, to undo and redo them in microseconds."""

from __future__ import annotations

from collections.abc import Callable
from operator import is_
from typing import TYPE_CHECKING, Any

from cache_dit_serving.pipeline.networks import networks_of

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

_ABSENT = object()


class Patch:
    """Attributes that `apply` sets on a pipeline and its modules, and the pipeline's class.

    cache-dit replaces `forward` of a transformer (in some families also of its blocks), adds attributes, and patches
    the pipeline's class. :meth:`take_off` restores the pipeline as it was loaded. `cache_dit.disable_cache` does not do
    so for families whose `forward` it replaces.

    A change made to the same attributes by others in between is lost. accelerate's offload hooks wrap `forward` too:
    they must be set before, and stay.
    """

    def __init__(self, pipe: DiffusionPipeline, apply: Callable[[], None]) -> None:
        """Run `apply` and record its changes. The pipeline is left without the patch, even if `apply` raises."""
        self._pipe = pipe
        self._class_before = type(pipe)
        owners = [pipe, *(module for part in networks_of(pipe).values() for module in part.modules())]
        before = [dict(vars(owner)) for owner in owners]
        self._changes: list[tuple[dict[str, Any], str, Any, Any]] = []
        self._class_after = self._class_before
        try:
            apply()
        finally:
            self._class_after = type(pipe)
            for owner, old in zip(owners, before, strict=True):
                attributes = vars(owner)
                if old.keys() == attributes.keys() and all(map(is_, old.values(), attributes.values())):
                    continue  # as of nearly all of hundreds of modules, which the loop below would take its time for
                for name in old.keys() | attributes.keys():
                    was, is_now = old.get(name, _ABSENT), attributes.get(name, _ABSENT)
                    if was is not is_now:
                        self._changes.append((attributes, name, was, is_now))
            self.take_off()

    def put_on(self) -> None:
        """Redo the changes."""
        self._pipe.__class__ = self._class_after
        for attributes, name, _, value in self._changes:
            _set(attributes, name, value)

    def take_off(self) -> None:
        """Undo the changes."""
        self._pipe.__class__ = self._class_before
        for attributes, name, value, _ in self._changes:
            _set(attributes, name, value)


def _set(attributes: dict[str, Any], name: str, value: Any) -> None:
    if value is _ABSENT:
        attributes.pop(name, None)
    else:
        attributes[name] = value
