"""Work beside requests, which ends with the server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine


class Background:
    """Tasks of one event loop that run until the server closes."""

    def __init__(self) -> None:
        self.closing = asyncio.Event()
        """Set when the server ends."""
        self._tasks: set[asyncio.Task[None]] = set()

    def begin(self, task: Coroutine[None, None, None]) -> None:
        """Run a task, and keep it from the garbage collector until it is done."""
        begun = asyncio.create_task(task)
        self._tasks.add(begun)
        begun.add_done_callback(self._tasks.discard)

    async def pause(self, seconds: float) -> None:
        """Wait so many seconds, or until the server ends."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.closing.wait(), seconds)

    async def close(self, timeout_s: float) -> None:
        """Have the tasks end, and wait for those that there are now."""
        self.closing.set()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)
