"""Retention of jobs that have ended: they are forgotten, with their files, on request, by age and by number."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence

from cache_dit_serving.config.settings import Limits
from cache_dit_serving.engine.background import Background
from cache_dit_serving.engine.job_files import JobFiles
from cache_dit_serving.errors import InternalError, StoreUnavailable
from cache_dit_serving.jobs.record import JobRecord
from cache_dit_serving.jobs.store.access import StoreAccess
from cache_dit_serving.jobs.store.exchanged import BATCH, Ended

FORGET_S, MORE_S = 5.0, 0.05
"""Seconds between two looks for jobs to forget: where there are no more, and where there may be."""


class JobRetention:
    """Jobs that have ended, for as long as `limits` keeps them."""

    def __init__(self, limits: Limits, access: StoreAccess, files: JobFiles) -> None:
        self._limits = limits
        self._access = access
        self._files = files

    async def forget(self, record: JobRecord) -> None:
        """Delete a job that has ended, and its files.

        Raises:
            InternalError: its files cannot be deleted.
            StoreUnavailable: the database does not answer.
        """
        # In this order: a job whose files are gone is forgotten next time, files without a job are not.
        await self._files.delete(record)
        await self._access.write(lambda store: store.aged.delete([record.id]))

    async def forget_all(self, jobs: Sequence[Ended]) -> list[Ended]:
        """Delete jobs that have ended, and their files; return those that are gone.

        Raises:
            StoreUnavailable: the database does not answer.
        """
        gone = await self._files.delete_all(jobs)
        if gone:
            await self._access.write(lambda store: store.aged.delete([job.id for job in gone]))
        return gone

    async def prune_until_closing(self, background: Background) -> None:
        """Forget jobs that are too old or too many, until the server ends."""
        while not background.closing.is_set():
            wait_s = FORGET_S
            with contextlib.suppress(StoreUnavailable, InternalError):  # the log has it
                if len(await self.forget_all(await self._surplus())) == BATCH:
                    wait_s = MORE_S
            await background.pause(wait_s)

    async def _surplus(self) -> list[Ended]:
        since, most = time.time() - self._limits.keep_jobs_s, self._limits.max_kept_jobs
        return await self._access.read(lambda store: store.aged.surplus(since, most))
