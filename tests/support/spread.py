"""Spreads modules over the test processes, so that those that share servers come to one of them."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

SHARING = "tests/http/"
"""Folder whose modules share servers and a browser, which each process that runs one of them starts anew."""


def next_of(modules: Iterable[str], *, sharing: bool) -> str:
    """Return the module that a process runs next: the first one of its kind, else the first one.

    Args:
        modules: those that are left, in their order.
        sharing: the process is the one for modules of :data:`SHARING`.
    """
    left = list(modules)
    return next((module for module in left if module.startswith(SHARING) == sharing), left[0])


class SharingLast(LoadFileScheduling):
    """One process runs the modules of :data:`SHARING`. The others do so when they have nothing else left."""

    def __init__(self, config: pytest.Config, log: Producer | None = None) -> None:
        super().__init__(config, log)
        self._of_sharing: WorkerController | None = None

    def _assign_work_unit(self, node: WorkerController) -> None:
        if self._of_sharing is None:
            self._of_sharing = node
        chosen = next_of(self.workqueue, sharing=node is self._of_sharing)
        self.workqueue.move_to_end(chosen, last=False)
        super()._assign_work_unit(node)
