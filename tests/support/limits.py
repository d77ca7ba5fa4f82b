"""Limits of callers over servers that share a database, without a transport."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from cache_dit_serving.jobs.shared_limits import SharedLimits
from cache_dit_serving.jobs.store.database import JobDatabase

WITHIN_S = 60
LEASE_S = 5.0


@asynccontextmanager
async def server(url: str) -> AsyncIterator[SharedLimits]:
    """The limits as one server of a database holds them, once it beats there."""
    database = JobDatabase(url, LEASE_S)
    limits = SharedLimits(database)
    assert await database.access.open()
    database.heart.start()
    try:
        await until(lambda: database.heart.beating)
        yield limits
    finally:
        await limits.close()
        await asyncio.to_thread(database.heart.stop)
        await asyncio.to_thread(database.access.close)


async def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < end, "waited too long"
        await asyncio.sleep(0.01)
