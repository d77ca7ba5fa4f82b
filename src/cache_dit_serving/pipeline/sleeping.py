"""Sleep of a loaded model: its device memory is given back, and its weights wait in host memory or are dropped."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import torch

from cache_dit_serving.errors import InvalidRequest, OutOfMemory
from cache_dit_serving.host_memory import free_host_bytes
from cache_dit_serving.pipeline.host_copy import HostCopy, NoHostMemory, empty, restore_each, storages_on
from cache_dit_serving.pipeline.memory import is_out_of_memory
from cache_dit_serving.pipeline.networks import networks_of

if TYPE_CHECKING:
    from cache_dit_serving.pipeline.part import Part
    from cache_dit_serving.pipeline.shared_weights import WeightsOfModel

logger = logging.getLogger(__name__)

LEVEL = "level"
"""Field of the request that names where the weights go."""


def why_not_in_host_memory(device: torch.device) -> str | None:
    """Return the reason that a device's weights cannot be moved to host memory; None if they can."""
    if device.type == "cuda":
        return None
    if device.type == "cpu":
        return "host: the weights of a model on cpu lie there already; `disk` drops them"
    return f"host: weights on {device.type} cannot be moved there; `disk` drops them"


class Sleeping:
    """The sleep of one pipeline and its siblings. For the pipeline's thread, but :attr:`copied_bytes`."""

    def __init__(self, parts: Iterable[Part], device: torch.device, shared: WeightsOfModel, processes: int = 1) -> None:
        """
        Args:
            shared: weights that other models may use too.
            processes: number of processes that go to sleep at once, and share the host's memory.
        """
        self._parts = tuple(parts)
        self._device = device
        self._shared = shared
        self._processes = processes
        self._copy: HostCopy | None = None
        """All weights in host memory but the shared ones."""

    @property
    def copied_bytes(self) -> int:
        """Bytes of weights that wait in host memory; 0 while the model is awake."""
        copy = self._copy
        return copy.bytes + self._shared.host_bytes if copy is not None else 0

    def sleep(self, flush: Callable[[], object], stop: Callable[[], bool]) -> int | None:
        """Move the weights to host memory and give the device's memory back; return its bytes.

        Args:
            flush: frees all else that the pipeline holds; called once the weights are copied.
            stop: called before each piece of the copy; True: undo it. None is returned then.

        Raises:
            InvalidRequest: the weights cannot be moved there, or the host has too little free memory.
        """
        if (why := why_not_in_host_memory(self._device)) is not None:
            raise InvalidRequest(why, param=LEVEL)
        going = self._shared.going()
        groups = [self._own_storages(self._device.type), *(each.storages for each in going)]
        try:
            copies = HostCopy.of_each(groups, stop, free_host_bytes() // self._processes)
        except NoHostMemory as error:
            needed, free = (f"{size / 2**30:.1f} GiB" for size in (error.needed, error.free))
            raise InvalidRequest(
                f"host: the weights need {needed} of host memory, and {free} are free; `disk` needs none", param=LEVEL
            ) from None
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise InvalidRequest("host: the host's memory ran out; `disk` needs none", param=LEVEL) from None
        if copies is None:
            return None
        self._copy, *of_going = copies
        self._shared.sleep(going, of_going)
        try:
            return self._give_back(flush, [storage for group in groups for storage in group])
        except BaseException:
            self.wake(lambda: None)  # nothing may draw with empty weights
            raise

    def wake(self, sign: Callable[[], None]) -> None:
        """Put the weights back on the device. Does nothing to a model that is awake.

        Raises:
            OutOfMemory: the device has too little free memory. The model is asleep as before.
        """
        if self._copy is None:
            return
        coming = (each.copy for each in self._shared.coming())
        try:
            restore_each([self._copy, *(each for each in coming if each is not None)], sign)
        except BaseException as error:
            self._shared.stay_asleep()
            if not is_out_of_memory(error):
                raise
            logger.exception("the weights do not fit into the memory of %s", self._device)
            failed = True
        else:
            failed = False
        if failed:
            # Outside the handler: the exception keeps what was allocated.
            give_back(self._device)
            raise OutOfMemory
        self._copy = None
        self._shared.wake()
        empty_allocators(self._device)

    def drop(self, flush: Callable[[], object]) -> int:
        """Give all memory of the model back, for good; return its bytes."""
        device_types = {self._device.type, "cpu"}
        storages = [each for device_type in device_types for each in self._own_storages(device_type)]
        storages += self._shared.leave()
        self._copy = None
        # `api/lifecycle.py` has set the model's objects aside from the garbage collector, as those of the libraries and
        # of other models, which stay: without them a collection takes a twentieth of the time.
        set_aside = gc.get_freeze_count() > 0
        gc.unfreeze()
        freed = self._give_back(flush, storages)
        self._parts = ()
        if set_aside:
            gc.freeze()
        return freed

    def _give_back(self, flush: Callable[[], object], storages: Sequence[torch.UntypedStorage]) -> int:
        """Empty storages and all else that the pipeline holds; return the bytes that the device has got back.

        On a CPU those of the storages: the C library keeps some of the memory for later.
        """
        sizes, held = sum(storage.nbytes() for storage in storages), reserved_bytes()
        flush()
        empty(storages)
        give_back(self._device)
        return held - reserved_bytes() if self._device.type == "cuda" else sizes

    def _own_storages(self, device_type: str) -> list[torch.UntypedStorage]:
        """Return the storages on a kind of device but those of the shared weights."""
        shared = self._shared.storages
        return [each for each in storages_on(device_type, self._modules()) if each._cdata not in shared]

    def _modules(self) -> list[torch.nn.Module]:
        return [each for part in self._parts for each in networks_of(part.pipe).values()]


def give_back(device: torch.device) -> None:
    """Collect what nothing refers to any more, and empty torch's allocators."""
    gc.collect()
    empty_allocators(device)


def empty_allocators(device: torch.device) -> None:
    """Give memory that torch's allocators keep for later back to the system, as far as no tensor holds it."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.accelerator.empty_host_cache()


def reserved_bytes() -> int:
    """Return the bytes of all GPUs that torch's allocator holds in this process; 0 without one."""
    return sum(torch.cuda.memory_reserved(number) for number in range(torch.cuda.device_count()))
