"""Ownership of jobs in the database: a server writes a job while it owns it, and takes over those of dead servers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence

from cache_dit_serving.engine.job_answers import answer_of
from cache_dit_serving.jobs.record import JobRecord
from cache_dit_serving.jobs.store.database import JobDatabase
from cache_dit_serving.jobs.store.exchanged import Wanted, summary
from cache_dit_serving.jobs.webhooks import Webhook, webhooks_of
from cache_dit_serving.schemas.answers import timestamp

logger = logging.getLogger(__name__)

ON_TIME_S = 3.0
"""Seconds of beats on time before this server takes a job that waits at another, so that it has heard from that one."""


class OwnedJobs:
    """Jobs that this server owns, in the database. Each method raises StoreUnavailable where it does not answer."""

    def __init__(self, database: JobDatabase) -> None:
        self._access = database.access
        self._lease_s = database.lease_s
        self._owner = database.server
        self._heart = database.heart

    def start(self) -> None:
        """Begin the beats by which other servers know that this one lives."""
        self._heart.start()

    async def close(self) -> None:
        """End the beats; the jobs that are left are for other servers."""
        await asyncio.to_thread(self._heart.stop)

    async def add(self, record: JobRecord, uploads: Sequence[str | bytes]) -> None:
        """Write a job that is new.

        Raises:
            KeyTaken: there is a job of its key.
        """
        await self._access.write(lambda store: store.add(record, uploads, self._owner, self._until()))

    async def put(self, record: JobRecord, *, keep: bool = True) -> bool:
        """Write a job as it is, and its webhooks; return False where another server owns it or it has ended.

        Args:
            keep: whether this server goes on owning it.
        """
        webhooks = _webhooks(record)
        return await self._access.write(lambda store: store.put(record, self._owner, keep=keep, webhooks=webhooks))

    def put_at_once(self, record: JobRecord) -> bool | None:
        """Write a job as by :meth:`put`, on another thread than the event loop's; None: the database does not answer.

        Raises nothing.
        """
        store = self._access.store
        if store is None or self._access.silent:
            return None
        from sqlalchemy.exc import SQLAlchemyError  # as the open database has imported it

        try:
            return store.put(record, self._owner, webhooks=_webhooks(record), brief=True)
        except SQLAlchemyError as error:
            logger.warning("it is not written yet that job %s runs: %s", record.id, summary(error))
            return None

    async def uploads(self, name: str) -> list[str | bytes]:
        """Return the files that came with a job that has not ended."""
        return await self._access.read(lambda store: store.uploads(name))

    async def is_written(self, record: JobRecord) -> bool:
        """Return whether a job ended in the database as here: the answer to an attempt before may have been lost."""
        stored = await self._access.read(lambda store: store.get(record.id))
        return stored is not None and (stored.history, stored.files) == (record.history, record.files)

    async def tell(self, records: Sequence[JobRecord]) -> dict[str, Wanted]:
        """Write the progress of jobs; return those that this server owns, each with the wishes of callers."""
        return await self._access.write(lambda store: store.tell(self._owner, self._until(), records))

    async def release(self, jobs: Sequence[str]) -> None:
        """Give jobs up, for whichever server takes them over."""
        await self._access.write(lambda store: store.release(jobs, self._owner))

    async def claim(self, name: str) -> JobRecord | None:
        """Take over one job; None: a live server owns it, or it has ended."""
        silent = self._heart.silent()
        return await self._access.write(lambda store: store.claim(name, self._owner, self._until(), silent))

    async def adopt(self, limit: int) -> list[JobRecord]:
        """Take over jobs without a live owner, the first ones first."""
        silent = self._heart.silent()
        return await self._access.write(lambda store: store.adopt(self._owner, self._until(), limit, silent))

    async def take_waiting(self) -> JobRecord | None:
        """Take over the next job that waits at another server; None: there is none, or this server has just begun."""
        if self._heart.on_time_s() < ON_TIME_S:
            return None
        return await self._access.write(lambda store: store.take_waiting(self._owner, self._until()))

    def _until(self) -> float:
        """End of this server's ownership if it says now that it lives, seconds since the epoch."""
        return time.time() + self._lease_s


def _webhooks(record: JobRecord) -> list[Webhook]:
    return webhooks_of(record, answer_of(record).model_dump_json(), timestamp(record.history[-1][1]))
