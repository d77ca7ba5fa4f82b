"""The processes that draw models.

They are spawned, and a spawned process does not import a package's `__main__.py`: nothing of that file reaches it.
"""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

from tests.support.vision import add_torchvision


def pool(processes: int) -> ProcessPoolExecutor:
    """Return a pool whose processes are ready to draw."""
    return ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), prepare)


def prepare() -> None:
    """Prepare a process of the pool. What it draws with is imported after torchvision's operators are declared."""
    add_torchvision()
    from tools.full_size.measure import prepare_process

    prepare_process()
