"""Lease of a server on its jobs: each second it tells of them, and takes over those of servers that do not live."""

from __future__ import annotations

import contextlib
import logging
import time

from cache_dit_serving.engine.background import Background
from cache_dit_serving.engine.engine import Engine
from cache_dit_serving.engine.job_files import JobFiles
from cache_dit_serving.engine.live_jobs import LiveJobs
from cache_dit_serving.engine.owned_jobs import OwnedJobs
from cache_dit_serving.errors import InternalError, JobInterrupted, StoreUnavailable
from cache_dit_serving.jobs import metrics
from cache_dit_serving.jobs.job import failed, queued_again
from cache_dit_serving.jobs.store.access import StoreAccess
from cache_dit_serving.jobs.store.heart import BEAT_S
from cache_dit_serving.schemas.jobs import JobState

logger = logging.getLogger(__name__)

COUNT_S = 5.0
"""Seconds between two counts of the jobs for the metrics."""
MOST_ATTEMPTS = 3
"""Maximum attempts at a job whose server ended while running it."""


class JobLease:
    """Work of each second on the jobs of the database, for the event loop of one server."""

    def __init__(
        self,
        engine: Engine,
        access: StoreAccess,
        owned: OwnedJobs,
        live: LiveJobs,
        files: JobFiles,
    ) -> None:
        self._settings = engine.settings
        self._worker = engine.worker
        self._access = access
        self._owned = owned
        self._live = live
        self._files = files
        self._unexpected = ""
        """Last failure that no error of ours names."""
        self._count_at = 0.0
        """Time of the next count, monotonic seconds."""

    async def keep_until_closing(self, background: Background) -> None:
        """Open the database, tell of the jobs here, and take over others, until the server ends."""
        while not background.closing.is_set():
            try:
                if await self._access.open():
                    await self._tell()
                    await self._count()
                    if self._worker.thread.state == "ready":
                        await self._adopt()
                        await self._help()
            except (StoreUnavailable, InternalError):
                pass  # the log has it
            except Exception as error:
                if repr(error) != self._unexpected:
                    logger.exception("the jobs of the database are not cared for")
                self._unexpected = repr(error)
            await background.pause(BEAT_S)

    async def _tell(self) -> None:
        """Write the progress of the jobs here, and carry out what callers want of them; cancel those taken over."""
        jobs = self._live.all()
        for job in jobs.values():
            if job.untold:
                with contextlib.suppress(StoreUnavailable):  # one row that somebody holds is none of the others' matter
                    job.untold = not await self._owned.put(job.record)
        mine = await self._owned.tell([self._live.now(job) for job in jobs.values()])
        for name, job in jobs.items():
            wanted = mine.get(name)
            if wanted is None:
                if self._live.get(name) is job:
                    job.taken = True
                    job.cancelled.set()
                continue
            if wanted.cancelled:
                job.cancelled.set()
            if wanted.priority != job.generation.priority:
                self._worker.set_priority(job.generation, wanted.priority)
        # Promised while the database did not answer: nobody here knows of them.
        if forgotten := [name for name in mine if name not in jobs and self._live.get(name) is None]:
            await self._owned.release(forgotten)

    async def _count(self) -> None:
        """Have the metrics say how many jobs there are, by state."""
        if time.monotonic() < self._count_at:
            return
        self._count_at = time.monotonic() + COUNT_S
        counts = await self._access.read(lambda store: store.counts())
        for state in JobState:
            metrics.JOBS.labels(state).set(counts.get(state, 0))

    async def _adopt(self) -> None:
        """Take over as many jobs without a live owner as there is room for."""
        room = self._settings.limits.max_queue - self._worker.queue().waiting
        if room <= 0:
            return
        for record in await self._owned.adopt(room):
            if self._live.get(record.id) is not None:
                continue  # given up a moment ago, and not left yet
            ran = record.state is JobState.RUNNING
            if ran and (self._settings.jobs.interrupted == "fail" or record.attempts >= MOST_ATTEMPTS):
                times = f"{record.attempts} times " if record.attempts > 1 else ""
                error = JobInterrupted(f"the server ended {times}while this job ran; submit it again")
                await self._files.clear(record.id)
                await self._owned.put(failed(record, error))
            else:
                await self._live.resume(queued_again(record) if ran else record)

    async def _help(self) -> None:
        """Take a job that waits at another server, if this one is idle."""
        queue = self._worker.queue()
        if queue.running or queue.waiting:
            return
        if (record := await self._owned.take_waiting()) is not None:
            await self._live.resume(record)
