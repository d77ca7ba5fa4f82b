"""Memory of the device: what is held, the most that an output took, and what size would fit."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch

from cache_dit_serving.errors import LoadError

NO_MEMORY = re.compile(r"can't allocate memory|not enough memory|out of memory|ALLOC_FAILED", re.IGNORECASE)
STATUS = Path("/proc/self/status")
CLEAR_PEAK = Path("/proc/self/clear_refs")
GRID = 64
"""Pixels: suggested widths and heights are multiples of it, which every model takes."""
SAFE = 0.9
"""Of what is free, the share that a suggested size may take."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is no memory; of a CPU, and in libraries, torch raises a plain RuntimeError."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and NO_MEMORY.search(str(error)) is not None


@contextmanager
def needing_memory(what_if_not: str) -> Iterator[None]:
    """Work that may not fit.

    Args:
        what_if_not: what to say then.

    Raises:
        LoadError: it does not.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise LoadError(what_if_not) from error


def held_bytes(device: torch.device) -> dict[str, int]:
    """Bytes that this process has resident, and what the device holds where it says so."""
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


class MemoryUse:
    """The most that an output took, of the device or, on a CPU, of the process; and what would fit by that."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._before = 0
        self._tells = True
        """Whether a peak is that of one output."""
        self._largest: tuple[int, float] | None = None
        """Of the largest output that was drawn: its pixels, and bytes for each of them."""

    def begin(self) -> None:
        """From here on."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)
        else:
            try:
                CLEAR_PEAK.write_text("5")  # Linux forgets the peak of a process that writes this there
            except OSError:
                self._tells = False  # not allowed in some containers
            self._before = _resident_bytes()

    def end(self, pixels: int) -> int | None:
        """The peak in bytes since :meth:`begin`; None where the system does not tell.

        Args:
            pixels: of what was drawn meanwhile.
        """
        peak = torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else _peak_resident_bytes()
        if peak is None or not self._tells:
            return None
        if pixels >= (self._largest or (0,))[0]:
            self._largest = (pixels, max(0, peak - self._before) / pixels)
        return peak

    def would_fit(self, width: int, height: int, pixels: int) -> tuple[int, int] | None:
        """The greatest width and height of the same shape that fit by what was measured; None where that is not known.

        Args:
            pixels: of all frames of that width and height.
        """
        if self._largest is None or not self._largest[1]:
            return None
        share = SAFE * _free_bytes(self._device) / self._largest[1] / pixels
        smaller = (int(width * share**0.5) // GRID * GRID, int(height * share**0.5) // GRID * GRID)
        # As large as what failed, it is no help.
        return smaller if min(smaller) > 0 and smaller[0] * smaller[1] < width * height else None


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    free = psutil.virtual_memory().available
    with contextlib.suppress(AttributeError, OSError):
        limit, _ = psutil.Process().rlimit(psutil.RLIMIT_AS)
        if limit not in (-1, psutil.RLIM_INFINITY):
            free = min(free, max(0, limit - psutil.Process().memory_info().vms))
    return free


def _resident_bytes() -> int:
    """Resident memory of this process, in bytes; 0 where the system does not tell."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0


def _peak_resident_bytes() -> int | None:
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", STATUS.read_text())
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None
