"""Deletion of outputs that are too old or too many; an output of a job takes the whole job with it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence

from cache_dit_serving.config.settings import OutputSettings
from cache_dit_serving.errors import InternalError, StoreUnavailable
from cache_dit_serving.jobs import metrics
from cache_dit_serving.jobs.store.access import Ask
from cache_dit_serving.jobs.store.exchanged import BATCH, Ended
from cache_dit_serving.media.outputs import Listed, Outputs
from cache_dit_serving.media.retention import Due, due_of

logger = logging.getLogger(__name__)

FIRST_S, AGAIN_S = 2.0, 60.0
"""Seconds from the start to the first sweep, and from one sweep to the next."""
HALF_WRITTEN_S = 3600.0
"""Age in seconds from which a half-written file counts as left by a process that was killed."""


class Sweeping:
    """Sweeps of one server; several that share their outputs do not disturb each other."""

    def __init__(
        self,
        settings: OutputSettings,
        outputs: Outputs,
        read: Ask,
        forget: Callable[[Sequence[Ended]], Awaitable[list[Ended]]],
    ) -> None:
        """
        Args:
            read: has the database tell something, or raises StoreUnavailable.
            forget: deletes jobs and their outputs, and returns those that are gone.
        """
        self._settings = settings
        self._outputs = outputs
        self._read = read
        self._forget = forget

    async def sweep_until(self, closing: asyncio.Event) -> None:
        """Sweep now and then, until the server ends."""
        wait_s = FIRST_S
        while not closing.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(closing.wait(), wait_s)
                return
            wait_s = AGAIN_S
            try:
                await self._sweep()
            except (StoreUnavailable, InternalError):
                pass  # the log has it
            except Exception:
                logger.exception("outputs are not swept")

    async def _sweep(self) -> None:
        now = time.time()
        await asyncio.to_thread(self._outputs.tidy, now - HALF_WRITTEN_S)
        listed = await asyncio.to_thread(self._outputs.listed)
        # Asked after the outputs were listed: one whose job was live then is not deleted.
        live = await self._read(lambda store: store.aged.live())
        units, of_unit = await asyncio.to_thread(_units, listed, await self._with_files(), live)
        due = await asyncio.to_thread(due_of, units, now, self._settings.keep_s, self._settings.max_bytes)
        deleted = freed = 0
        for batch in _batches(due):
            for unit in await self._deleted(batch, of_unit):
                metrics.OUTPUTS_DELETED.labels(unit.reason).inc()
                deleted, freed = deleted + 1, freed + unit.output.bytes
        if deleted:
            logger.info("%d jobs and outputs of no job deleted, %d bytes", deleted, freed)

    async def _with_files(self) -> list[Ended]:
        """Return the jobs with outputs, read by pages so that requests come in between."""
        jobs: list[Ended] = []
        after: int | None = 0
        while after is not None:
            page = await self._read(lambda store, after=after: store.aged.with_files(after))  # type: ignore[misc]
            jobs += page.jobs
            after = page.next
        return jobs

    async def _deleted(self, batch: list[Due], of_unit: dict[str, Ended | str]) -> list[Due]:
        """Delete what is due; returns those that are gone."""
        jobs = {job.id: due for due in batch if isinstance(job := of_unit[due.output.name], Ended)}
        forgotten = await self._forget([job for due in batch if isinstance(job := of_unit[due.output.name], Ended)])
        gone = [jobs[job.id] for job in forgotten]
        for due in batch:
            if isinstance(name := of_unit[due.output.name], str):
                with contextlib.suppress(InternalError):  # the log has it; the others are none the worse for it
                    await asyncio.to_thread(self._outputs.delete, [name], name.rpartition("/")[0])
                    gone.append(due)
        return gone


def _batches(due: list[Due]) -> Iterable[list[Due]]:
    return (due[first : first + BATCH] for first in range(0, len(due), BATCH))


def _units(listed: list[Listed], jobs: list[Ended], live: set[str]) -> tuple[list[Listed], dict[str, Ended | str]]:
    """Return units that are deleted as one, and the job or file of each: all outputs of a job, or one of no job.

    Outputs of jobs that have not ended are none.
    """
    of_job = {file: job for job in jobs for file in job.files}
    units: dict[str, Listed] = {}
    of_unit: dict[str, Ended | str] = {}
    for output in listed:
        if output.name.rpartition("/")[0].rpartition("/")[2] in live:
            continue
        job = of_job.get(output.name)
        name = output.name if job is None else f"job {job.id}"
        of_unit[name] = output.name if job is None else job
        before = units.get(name, Listed(name, 0, 0.0))
        units[name] = Listed(name, before.bytes + output.bytes, max(before.modified, output.modified))
    return list(units.values()), of_unit
