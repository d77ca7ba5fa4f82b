"""Memory of the device: bytes held, peak of an output, and the size of output that would fit."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from cache_dit_serving.config.footprints import Footprint
from cache_dit_serving.errors import NeedsMemory
from cache_dit_serving.host_memory import free_host_bytes

NO_MEMORY = re.compile(
    # oneDNN of torch 2.13, where its memory runs out; a primitive descriptor fails for unsupported arguments.
    r"can't allocate memory|not enough memory|out of memory|ALLOC_FAILED|could not create a primitive\b(?! descriptor)",
    re.IGNORECASE,
)
STATUS = Path("/proc/self/status")
CLEAR_PEAK = Path("/proc/self/clear_refs")
GRID = 64
"""Grid of suggested widths and heights, px; every model takes its multiples."""
SAFE = 0.9
"""Share of the free memory that a suggested size may use."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out.

    On a CPU, and in some libraries, torch raises a plain RuntimeError, which is recognised by its text.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and NO_MEMORY.search(str(error)) is not None


@contextmanager
def needing_memory(what_if_not: str) -> Iterator[None]:
    """Turn a lack of memory in the body into a NeedsMemory.

    Args:
        what_if_not: the error's message.

    Raises:
        NeedsMemory: memory ran out.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise NeedsMemory(what_if_not) from error


def held_bytes(device: torch.device) -> dict[str, int]:
    """Return the resident bytes of this process and, on CUDA, the device's total, free, allocated and peak bytes."""
    memory = {"process_resident_bytes": _resident_bytes()}
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        memory |= {
            "device_total_bytes": total,
            "device_free_bytes": free,
            "device_allocated_bytes": torch.cuda.memory_allocated(device),
            "device_peak_allocated_bytes": torch.cuda.max_memory_allocated(device),
        }
    return memory


def memory_advice(footprint: Footprint | None, device: torch.device) -> str | None:
    """Return a sentence about the settings with which a model fits into a CUDA device.

    None if its footprint is not known, or of weights alone, or the device is another.
    """
    if footprint is None or footprint.not_drawn or device.type != "cuda":
        return None
    _, total = torch.cuda.mem_get_info(device)
    return footprint.advice(total)


class MemoryUse:
    """Peak memory of outputs, of the device or on a CPU of the process, and the size that would fit by it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = 0
        self._tells = True
        """True if the peak can be reset before each output."""
        self._largest: tuple[int, float] | None = None
        """(pixels, bytes per pixel) of the largest output so far; None before the first."""

    def begin(self) -> None:
        """Begin the measurement of one output: reset the peak."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)
        else:
            try:
                CLEAR_PEAK.write_text("5")  # Linux resets the peak of a process that writes 5 there
            except OSError:
                self._tells = False  # not allowed in some containers
            self._before = _resident_bytes()

    def end(self, pixels: int) -> int | None:
        """Return the peak in bytes since :meth:`begin`; None if the system does not report it.

        Args:
            pixels: pixels of the output, over all its frames.
        """
        peak = torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else peak_resident_bytes()
        if peak is None or not self._tells:
            return None
        if pixels >= (self._largest or (0,))[0]:
            self._largest = (pixels, max(0, peak - self._before) / pixels)
        return peak

    def would_fit(self, width: int, height: int, pixels: int) -> tuple[int, int] | None:
        """Return the greatest (width, height) of the same shape that fits, multiples of `GRID`, by the measured use.

        None if nothing was measured yet, or no smaller size fits.

        Args:
            pixels: pixels of the output at `width` and `height`, over all its frames.
        """
        if self._largest is None or not self._largest[1]:
            return None
        share = SAFE * _free_bytes(self._device) / self._largest[1] / pixels
        smaller = (int(width * share**0.5) // GRID * GRID, int(height * share**0.5) // GRID * GRID)
        # A size as large as the one that failed is no remedy.
        return smaller if min(smaller) > 0 and smaller[0] * smaller[1] < width * height else None


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free_host_bytes()


def _resident_bytes() -> int:
    """Return the resident memory of this process in bytes; 0 if the system does not report it."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0


def peak_resident_bytes() -> int | None:
    """Return the most resident memory that this process has had in bytes; None if the system does not report it.

    `ru_maxrss` begins with that of the process that started this one.
    """
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text())
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None
