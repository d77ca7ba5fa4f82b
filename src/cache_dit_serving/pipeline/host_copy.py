"""Weights in host memory while the device's memory is given back, and their way back.

Only the bytes of a tensor's storage leave the device. The tensor stays the same object, with its device, shape and
strides. So weights that share a storage, quantised tensors, the layers of LoRAs, the hooks of offload and compiled
graphs find all as it was.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

logger = logging.getLogger(__name__)

CHUNK_BYTES = 2**28
"""Size of a piece of host memory. torch 2.13 rounds page-locked memory up to a power of two, which this is."""
PINNED_SHARE = 0.5
"""Share of the free host memory up to which the copy is page-locked. Locked memory cannot be swapped out."""


class NoHostMemory(Exception):
    """The host has too little free memory for a copy of the weights."""

    def __init__(self, needed: int, free: int) -> None:
        super().__init__()
        self.needed = needed
        self.free = free


def storages_on(device_type: str, modules: Iterable[torch.nn.Module]) -> list[torch.UntypedStorage]:
    """Return the storages of all weights and buffers of modules that lie on a kind of device, each once.

    Storages that cannot be resized are left out: memory that torch did not allocate.
    """
    found: dict[int, torch.UntypedStorage] = {}
    for module in modules:
        for tensors in (module.parameters(), module.buffers()):
            for plain in (each for tensor in tensors for each in plain_tensors(tensor)):
                storage = plain.untyped_storage()
                if storage.device.type == device_type and storage.nbytes() and storage.resizable():
                    found[storage._cdata] = storage
    return list(found.values())


def empty(storages: Iterable[torch.UntypedStorage]) -> None:
    """Give the memory of storages back to torch's allocator; what was in them is lost."""
    for storage in storages:
        storage.resize_(0)


def restore_each(copies: Sequence[HostCopy], sign: Callable[[], None]) -> None:
    """Give the storages of all copies their contents back, or those of none. As :meth:`HostCopy.restore`."""
    restored: list[HostCopy] = []
    try:
        for copy in copies:
            copy.restore(sign)
            restored.append(copy)
    except BaseException:
        for copy in restored:
            copy.empty()
        raise


class HostCopy:
    """Contents of storages in host memory."""

    def __init__(self, storages: Sequence[torch.UntypedStorage], *, pinned: bool) -> None:
        self._storages = tuple(storages)
        self._sizes = [storage.nbytes() for storage in storages]
        self.bytes = sum(self._sizes)
        self._chunks = list(_chunks(self.bytes, pinned=pinned))

    @classmethod
    def of(cls, storages: Sequence[torch.UntypedStorage], stop: Callable[[], bool], free: int) -> HostCopy | None:
        """Copy storages, which stay as they are; return None if the copy was stopped.

        Args:
            stop: called before each piece; True: the copy is no longer wanted.
            free: bytes of host memory that it may take.

        Raises:
            NoHostMemory: the host has too little free memory.
        """
        copies = cls.of_each([storages], stop, free)
        return copies[0] if copies is not None else None

    @classmethod
    def of_each(
        cls, groups: Sequence[Sequence[torch.UntypedStorage]], stop: Callable[[], bool], free: int
    ) -> list[HostCopy] | None:
        """Copy groups of storages; return a copy of each. As :meth:`of`."""
        storages = [storage for group in groups for storage in group]
        needed = sum(storage.nbytes() for storage in storages)
        if needed > free:
            raise NoHostMemory(needed, free)
        pinned = any(storage.device.type == "cuda" for storage in storages) and needed <= PINNED_SHARE * free
        copies = []
        for group in groups:
            copies.append(copy := cls(group, pinned=pinned))
            for content, kept in copy._pieces():
                if stop():
                    return None
                kept.copy_(content)
        return copies

    def restore(self, sign: Callable[[], None]) -> None:
        """Give the storages their memory and contents back.

        Args:
            sign: called before each piece.

        Raises:
            Exception: the device's memory ran out. The storages are empty again, and the copy can be restored later.
        """
        try:
            for storage, size in zip(self._storages, self._sizes, strict=True):
                storage.resize_(size)
            for content, kept in self._pieces():
                sign()
                content.copy_(kept)
        except BaseException:
            self.empty()
            raise

    def empty(self) -> None:
        """Give the memory of the storages back once more, after :meth:`restore`."""
        empty(self._storages)

    def _pieces(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield each piece of a storage with its place in the chunks, as bytes."""
        position = 0
        for storage, size in zip(self._storages, self._sizes, strict=True):
            content = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
            begin = 0
            while begin < size:
                chunk, offset = divmod(position, CHUNK_BYTES)
                length = min(size - begin, CHUNK_BYTES - offset)
                yield content[begin : begin + length], self._chunks[chunk][offset : offset + length]
                begin, position = begin + length, position + length


def _chunks(size: int, *, pinned: bool) -> Iterator[torch.Tensor]:
    """Yield pieces of host memory of `size` bytes in all, page-locked as far as the system allows."""
    for begin in range(0, size, CHUNK_BYTES):
        length = min(CHUNK_BYTES, size - begin)
        if pinned:
            with contextlib.suppress(RuntimeError):
                yield torch.empty(length, dtype=torch.uint8, pin_memory=True)
                continue
            logger.info("the system locks no more memory: the rest of the weights lies in memory that can be swapped")
            pinned = False
        yield torch.empty(length, dtype=torch.uint8)


def plain_tensors(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the tensors with storages that a tensor is made of: itself, or the parts of a quantised or spread one."""
    if not is_traceable_wrapper_subclass(tensor):
        yield tensor
        return
    names, _ = tensor.__tensor_flatten__()
    for name in names:
        part = getattr(tensor, name)
        if isinstance(part, torch.Tensor):  # a DTensor's have its mesh of devices too
            yield from plain_tensors(part)
