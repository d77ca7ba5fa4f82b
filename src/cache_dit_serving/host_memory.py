"""Memory of this machine, or of the container that the process runs in where that has less."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import psutil

CGROUP = Path("/sys/fs/cgroup")
"""Limits of a container's memory, as version 2 of Linux' control groups shows them inside it."""


def host_bytes() -> int:
    """Return the bytes of memory in all."""
    total = psutil.virtual_memory().total
    with contextlib.suppress(OSError, ValueError):
        return min(total, _limits("memory.max")[0])
    return total


def free_host_bytes() -> int:
    """Return the bytes of memory that this process may still take: of the machine, its container and its limit."""
    free = psutil.virtual_memory().available
    with contextlib.suppress(OSError, ValueError):
        # The container's page cache counts as used, and gives way.
        limit, used = _limits("memory.max", "memory.current")
        cached = re.search(r"^inactive_file (\d+)$", (CGROUP / "memory.stat").read_text(), re.MULTILINE)
        free = min(free, max(0, limit - used + (int(cached[1]) if cached else 0)))
    with contextlib.suppress(AttributeError, OSError):
        limit, _ = psutil.Process().rlimit(psutil.RLIMIT_AS)
        if limit not in (-1, psutil.RLIM_INFINITY):
            free = min(free, max(0, limit - psutil.Process().memory_info().vms))
    return free


def _limits(*names: str) -> list[int]:
    """Return numbers of the container's control group.

    Raises:
        OSError: there is none.
        ValueError: one is "max": there is no limit.
    """
    return [int((CGROUP / name).read_text()) for name in names]
