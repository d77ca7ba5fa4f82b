"""Weights of several models in one process: components with equal ones use the same memory.

Two models with the same text encoder hold it once. While one of them is awake its weights lie on the device; they go to
host memory with the last one that sleeps, and come back with the first one that wakes. All of it happens on the
pipeline's thread; any thread may read.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cache_dit_serving.host_memory import free_host_bytes

if TYPE_CHECKING:
    import torch

    from cache_dit_serving.pipeline.equal_weights import Weights
    from cache_dit_serving.pipeline.host_copy import HostCopy

logger = logging.getLogger(__name__)

Components = Mapping[str, "torch.nn.Module"]
"""Networks of a pipeline by name."""


@dataclass(eq=False)
class ComponentWeights:
    """Weights of a component, which one model holds or several."""

    name: str
    """Name among all of the process."""
    device: torch.device
    weights: Weights
    storages: Sequence[torch.UntypedStorage]
    holders: dict[str, str]
    """Component of each model that holds them."""
    awake: set[str]
    """Models that are awake and hold them."""
    copy: HostCopy | None = None
    """Their contents in host memory; None: they lie on the device."""
    copied_by: str | None = None
    """Model that counts the copy as its own."""
    sample: torch.Tensor | None = field(default=None, repr=False)
    """A few of their bytes, in host memory, while they are not on the device."""

    def fall_asleep(self, copy: HostCopy, model: str) -> None:
        """Take note that the copy is the only one as soon as the device's memory is given back."""
        from cache_dit_serving.pipeline.equal_weights import sample

        self.sample = sample(self.weights)
        self.copy, self.copied_by = copy, model

    def woke(self) -> None:
        """Take note that they are on the device again."""
        self.copy = self.copied_by = self.sample = None


class SharedWeights:
    """Weights of all models in this process."""

    def __init__(self) -> None:
        self._all: tuple[ComponentWeights, ...] = ()

    def of(self, model: str) -> WeightsOfModel:
        """Return the part of one model, by its name in requests."""
        return WeightsOfModel(self, model)

    def __iter__(self) -> Iterator[ComponentWeights]:
        return iter(self._all)

    def add(self, weights: ComponentWeights) -> None:
        self._all = (*self._all, weights)

    def remove(self, weights: ComponentWeights) -> None:
        self._all = tuple(each for each in self._all if each is not weights)

    def free_name(self, wanted: str) -> str:
        """Return a name that no weights have."""
        taken, name, number = {each.name for each in self._all}, wanted, 1
        while name in taken:
            number += 1
            name = f"{wanted} {number}"
        return name


class WeightsOfModel:
    """The weights of one model among those of all."""

    def __init__(self, shared: SharedWeights, model: str) -> None:
        self._shared = shared
        self._model = model

    def _held(self) -> list[ComponentWeights]:
        return [each for each in self._shared if self._model in each.holders]

    @property
    def names(self) -> dict[str, str]:
        """Names of the weights by component; the same in two models that share them."""
        return {each.holders[self._model]: each.name for each in self._held()}

    @property
    def storages(self) -> set[int]:
        """Identities of all storages of these weights."""
        return {storage._cdata for each in self._held() for storage in each.storages}

    @property
    def host_bytes(self) -> int:
        """Bytes in host memory that this model's sleep has brought there."""
        return sum(each.copy.bytes for each in self._held() if each.copied_by == self._model and each.copy is not None)

    def find(self, components: Components, device: torch.device, progress: Callable[[str], None]) -> None:
        """Have networks that are not on the device yet use the weights of other models, as far as they are equal.

        Weights that sleep in host memory are put on the device for it.

        Raises:
            Exception: the device's memory ran out.
        """
        from cache_dit_serving.pipeline import equal_weights

        for component, module in components.items():
            weights = equal_weights.weights_of(module)
            for held in self._shared:
                free = self._model not in held.holders and held.device == device
                if not weights or not free or not equal_weights.look_alike(held.weights, weights):
                    continue
                others = ", ".join(held.holders)
                progress(f"comparing {component} with that of {others}")
                if _equal(held, weights):
                    equal_weights.take_over(module, held.weights)
                    held.holders[self._model] = component
                    held.awake.add(self._model)
                    logger.info("%s is that of %s: it lies in memory once", component, others)
                    break

    def hold(self, components: Components, device: torch.device) -> None:
        """Take in networks that lie on the device, so that other models can use their weights."""
        from cache_dit_serving.pipeline import equal_weights

        known = self.names
        for component, module in components.items():
            if component in known or not (weights := equal_weights.weights_of(module)):
                continue
            taken = self.storages
            storages = equal_weights.storages_of(weights)
            if any(each.device != device or each._cdata in taken for each in storages):
                continue
            name = self._shared.free_name(f"{self._model}/{component}")
            self._shared.add(ComponentWeights(name, device, weights, storages, {self._model: component}, {self._model}))

    def going(self) -> list[ComponentWeights]:
        """Return the weights that go to host memory with this model, since no other one is awake with them."""
        return [each for each in self._held() if each.awake == {self._model}]

    def sleep(self, going: Sequence[ComponentWeights], copies: Sequence[HostCopy]) -> None:
        """Take note that the model goes to sleep, with copies of what goes with it."""
        for each, copy in zip(going, copies, strict=True):
            each.fall_asleep(copy, self._model)
        for each in self._held():
            each.awake.discard(self._model)

    def claim(self) -> None:
        """Have weights stay on the device where they are there now: the model, which is asleep, is about to wake."""
        for each in self._held():
            if each.copy is None:
                each.awake.add(self._model)

    def stay_asleep(self) -> None:
        """Take note that the model does not wake after :meth:`claim`."""
        for each in self._held():
            each.awake.discard(self._model)
            _settle(each)

    def coming(self) -> list[ComponentWeights]:
        """Return the weights that come back from host memory with this model."""
        return [each for each in self._held() if each.copy is not None]

    def wake(self) -> None:
        """Take note that the model is awake, and all its weights lie on the device."""
        for each in self._held():
            each.woke()
            each.awake.add(self._model)

    def leave(self) -> list[torch.UntypedStorage]:
        """Take note that the model is dropped; return the storages that hold nothing any more.

        Weights that only models in host memory still hold go there.
        """
        emptied: list[torch.UntypedStorage] = []
        for each in self._held():
            del each.holders[self._model]
            each.awake.discard(self._model)
            if not each.holders:
                self._shared.remove(each)
                emptied += each.storages
            elif each.copied_by == self._model:
                each.copied_by = next(iter(each.holders))
            else:
                _settle(each)
        return emptied

    def abandon(self) -> None:
        """Take note that the model could not be loaded."""
        _empty(self.leave())

    def part(self, components: Components) -> None:
        """Give networks weights of their own, before they change: other models keep those of before.

        Raises:
            Exception: the device's memory ran out. No other model's weights are changed by it.
        """
        from cache_dit_serving.pipeline import equal_weights

        for component, module in components.items():
            held = next((each for each in self._held() if each.holders[self._model] == component), None)
            if held is None or len(held.holders) == 1:
                continue
            equal_weights.part(equal_weights.weights_of(module))
            del held.holders[self._model]
            held.awake.discard(self._model)
            _settle(held)
            self.hold({component: module}, held.device)


def _equal(held: ComponentWeights, weights: Weights) -> bool:
    """Return whether weights are equal to those of a network; those that sleep are awake afterwards if they are."""
    import torch

    from cache_dit_serving.pipeline import equal_weights

    if held.copy is None:
        return equal_weights.are_equal(held.weights, weights)
    if held.sample is None or not torch.equal(held.sample, equal_weights.sample(weights)):
        return False
    held.copy.restore(lambda: None)
    try:
        equal = equal_weights.are_equal(held.weights, weights)
    except BaseException:
        held.copy.empty()
        raise
    if equal:
        held.woke()
    else:
        held.copy.empty()
    return equal


def _settle(held: ComponentWeights) -> None:
    """Move weights that no model is awake with to host memory. Where that lacks room they stay on the device."""
    from cache_dit_serving.pipeline.host_copy import HostCopy, NoHostMemory

    if held.awake or held.copy is not None:
        return
    try:
        copy = HostCopy.of(held.storages, lambda: False, free_host_bytes())
    except (NoHostMemory, MemoryError, RuntimeError):
        logger.exception("%s stays on the device: host memory has no room for it", held.name)
        return
    assert copy is not None
    held.fall_asleep(copy, next(iter(held.holders)))
    _empty(held.storages)


def _empty(storages: Sequence[torch.UntypedStorage]) -> None:
    from cache_dit_serving.pipeline.host_copy import empty

    empty(storages)
