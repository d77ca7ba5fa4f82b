"""Memory of several models: which of them are on the device, in host memory or on disk, and who gives way to whom.

For the pipeline's thread, between two generations or where one needs more memory than is free; any thread may read.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cache_dit_serving.config.residency import SleepLevel
from cache_dit_serving.errors import InvalidRequest, ServingError, WakeFailed
from cache_dit_serving.host_memory import host_bytes
from cache_dit_serving.jobs import metrics
from cache_dit_serving.jobs.generation import Generation
from cache_dit_serving.jobs.served_model import ServedModel

logger = logging.getLogger(__name__)

DEVICE_SHARE = 0.9
"""Share of a device's memory that weights may take where no bound is set; outputs need some too."""
HOST_SHARE = 0.5
"""Share of the machine's memory for weights that sleep in it, where no bound is set."""


class MemoryBounds(NamedTuple):
    """Bytes of weights that may be held at once; None: a share of the memory that there is."""

    device: int | None = None
    """Bytes on each device, of models that are awake."""
    host: int | None = None
    """Bytes in host memory, of models that are asleep."""


@dataclass(frozen=True)
class Placed:
    """Models that are awake at one time, by the order of their last use, and the seconds until others are."""

    awake: tuple[ServedModel, ...]
    """The one that was used last at the end."""
    capacity: Callable[[ServedModel], int]
    """Bytes of weights that fit on the device of a model."""

    def switch_s(self, generation: Generation) -> float:
        """Return the seconds that the model of a generation takes until it can draw; 0 for one that is awake."""
        model = generation.model
        return 0.0 if model in self.awake else model.residency.wake_left_s()

    def after(self, generation: Generation) -> Placed:
        """Return the placement once a generation has run."""
        model = generation.model
        others = [each for each in self.awake if each is not model]
        if model not in self.awake:
            while leaving := _first_to_leave(others, model, self.capacity(model)):
                others.remove(leaving)
        return Placed((*others, model), self.capacity)


class Residents:
    """The models of one pipeline's thread, and their places."""

    def __init__(self, bounds: MemoryBounds, *, now: Callable[[], float] = time.monotonic) -> None:
        """
        Args:
            now: seconds.
        """
        self._bounds = bounds
        self._now = now
        self._models: list[ServedModel] = []
        """The models by the time of their last use."""
        self._most: dict[str, int] = {}
        """Bytes of weights beside which an output did not fit, by device: so many are too many."""
        self._totals: dict[str | None, int] = {}
        """Bytes of each device's memory."""

    def add(self, model: ServedModel) -> None:
        """Take one more model in, before any is used."""
        self._models.append(model)

    @property
    def are_several(self) -> bool:
        """True if there is more than one model."""
        return len(self._models) > 1

    def placed(self) -> Placed:
        """Return the models in memory now. Any thread may call."""
        return Placed(tuple(each for each in self._models if each.awake), self._capacity)

    def make_ready(self, model: ServedModel) -> float:
        """Have a model awake, others giving way as need be; return the seconds that it took, 0 if it was awake.

        Raises:
            WakeFailed: its weights do not fit beside those that do not give way. It is asleep as before.
            ServingError: as :meth:`Residency.wake`.
            NotLoadedAgain: it could not be loaded, or the server shuts down.
        """
        if not self.are_several:
            return model.residency.wake()
        if model.awake:
            self._use(model)
            return 0.0
        began = self._now()
        if model.residency.level == "host":
            model.loading.runner.will_wake()
        self._make_room(model)
        while True:
            try:
                model.residency.wake()
                break
            except WakeFailed:
                if not self.give_way(model):
                    raise
        self._use(model)
        self._make_room(model)  # its size may have been unknown before
        seconds = self._now() - began
        metrics.SWITCHES.labels(model.name).inc()
        metrics.SWITCH_SECONDS.labels(model.name).inc(seconds)
        return seconds

    def give_way(self, wanting: ServedModel) -> bool:
        """Have the model give way that was used longest ago, since another one lacks memory.

        Returns:
            False if none can.
        """
        if not self.are_several:
            return False
        awake = [each for each in self._models if each.awake and each.device == (wanting.device or each.device)]
        if wanting.awake and wanting.device is not None:
            # So much was too much, and would be again.
            held = bytes_of(awake)
            self._most[wanting.device] = max(wanting.weight_bytes, held - 1)
        return any(self._leaves(each, wanting) for each in _give_way_to(awake, wanting))

    def _use(self, model: ServedModel) -> None:
        self._models = [*(each for each in self._models if each is not model), model]

    def _make_room(self, model: ServedModel) -> None:
        """Have others give way until a model fits by what is known of its size."""
        while True:
            others = [each for each in self._models if each.awake and each is not model]
            if _first_to_leave(others, model, self._capacity(model)) is None:
                return
            if not any(self._leaves(each, model) for each in _give_way_to(others, model)):
                return  # it is tried all the same: the memory has the last word

    def _leaves(self, model: ServedModel, wanting: ServedModel) -> bool:
        """Have a model leave the device, for host memory or else for the disk; return whether it did.

        Args:
            wanting: model that needs its memory.
        """
        for level in self._levels(model, wanting):
            try:
                slept = model.residency.sleep(level, lambda: False)
            except ServingError as error:
                logger.info("%s does not give way to host memory or disk (%s): %s", model.name, level, error.message)
                continue
            except Exception:
                logger.exception("%s does not give way to host memory or disk (%s)", model.name, level)
                continue
            logger.info("%s gave way, to %s", model.name, "host memory" if slept.level == "host" else "disk")
            return True
        return False

    def _levels(self, model: ServedModel, wanting: ServedModel) -> Sequence[SleepLevel]:
        usual = model.residency.usual_level()
        if usual == "host" and not self._has_host_room(model, wanting):
            return ("disk",)
        return ("host", "disk") if usual == "host" else ("disk",)

    def _has_host_room(self, model: ServedModel, wanting: ServedModel) -> bool:
        """Return whether a model fits into host memory, once those there have gone to disk that were used before."""
        bound = self._bounds.host if self._bounds.host is not None else int(HOST_SHARE * host_bytes())
        # What it shares with these stays on the device; a model on disk is to find it in host memory.
        staying = [
            each
            for each in self._models
            if each is not model and (each.awake or (each is wanting and each.residency.level == "host"))
        ]
        needed = bytes_of([model], besides=staying)
        if needed > bound:
            return False
        for each in list(self._models):
            if sum(other.host_bytes for other in self._models) + needed <= bound:
                return True
            if each.residency.level == "host":
                try:
                    each.residency.sleep("disk", lambda: False)
                except InvalidRequest:
                    continue  # reloaded weights are on no disk
        return sum(each.host_bytes for each in self._models) + needed <= bound

    def _capacity(self, model: ServedModel) -> int:
        """Return the bytes of weights that fit on the device of a model; of the host's memory before its first load."""
        device = model.device or next((each.device for each in self._models if each.device), None)
        bound = self._bounds.device if self._bounds.device is not None else int(DEVICE_SHARE * self._total(device))
        return min(bound, self._most.get(device or "", bound))

    def _total(self, device: str | None) -> int:
        """Return the bytes of a device's memory; of the host's for a CPU, or as long as no model has told it."""
        if device not in self._totals:
            held = next((each for each in self._models if each.device == device and each.loading.in_memory), None)
            if held is None:
                return host_bytes()
            self._totals[device] = held.loading.runner.memory().get("device_total_bytes") or host_bytes()
        return self._totals[device]


def _give_way_to(others: Sequence[ServedModel], wanting: ServedModel) -> Sequence[ServedModel]:
    """Return those of other models that may give way, the first one first."""
    return [each for each in others if each is not wanting and each.resident != "always"]


def _first_to_leave(others: Sequence[ServedModel], model: ServedModel, capacity: int) -> ServedModel | None:
    """Return the model that gives way first if another one is to be awake; None: it fits, or none gives way.

    Args:
        capacity: bytes of weights that fit on its device.
    """
    beside = [each for each in others if model.device is None or each.device == model.device]
    if bytes_of([*beside, model]) <= capacity:
        return None
    return next(iter(_give_way_to(beside, model)), None)


def bytes_of(models: Iterable[ServedModel], besides: Iterable[ServedModel] = ()) -> int:
    """Return the bytes of the weights of models on one device, those that several share once.

    Args:
        besides: models whose weights do not count.
    """
    sizes: dict[str, int] = {}
    for model in models:
        for name, size in model.weights.items():
            sizes[name] = max(size, sizes.get(name, 0))  # one may have LoRAs on them
    others = {name for model in besides for name in model.weights}
    return sum(size for name, size in sizes.items() if name not in others)
