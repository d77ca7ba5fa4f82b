"""Deletes outputs that are too old or too many, and with one of a job's the whole job."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable

from cache_dit_serving.config.settings import OutputSettings
from cache_dit_serving.errors import InternalError, StoreUnavailable
from cache_dit_serving.jobs import metrics
from cache_dit_serving.jobs.record import JobRecord
from cache_dit_serving.jobs.store.store import Ask
from cache_dit_serving.media.outputs import Listed, Outputs
from cache_dit_serving.media.retention import due_of

logger = logging.getLogger(__name__)

FIRST_S, AGAIN_S = 2.0, 60.0
"""After the start, and from one sweep to the next."""
HALF_WRITTEN_S = 3600.0
"""A file that is still being written after so long is one of a process that was killed."""


class Sweeping:
    """Of one server; several that share their outputs do not disturb each other."""

    def __init__(
        self, settings: OutputSettings, outputs: Outputs, ask: Ask, forget: Callable[[JobRecord], Awaitable[None]]
    ) -> None:
        """
        Args:
            ask: has the database do something, or raises StoreUnavailable.
            forget: deletes a job and its outputs.
        """
        self._settings = settings
        self._outputs = outputs
        self._ask = ask
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
        jobs, live = await self._ask(lambda store: store.with_files())
        units, of_unit = _units(listed, {file: job for job in jobs for file in job.files}, live)
        deleted = freed = 0
        for unit, reason in due_of(units, now, self._settings.keep_s, self._settings.max_bytes):
            of_it = of_unit[unit.name]
            try:
                if isinstance(of_it, JobRecord):
                    await self._forget(of_it)
                else:
                    await asyncio.to_thread(self._outputs.delete, [of_it], of_it.rpartition("/")[0])
            except InternalError:
                continue  # the log has it; the others are none the worse for it
            metrics.OUTPUTS_DELETED.labels(reason).inc()
            deleted, freed = deleted + 1, freed + unit.bytes
        if deleted:
            logger.info("%d jobs and outputs of no job deleted, %d bytes", deleted, freed)


def _units(
    listed: list[Listed], of_job: dict[str, JobRecord], live: set[str]
) -> tuple[list[Listed], dict[str, JobRecord | str]]:
    """What goes as one: all outputs of a job together, or one of no job; and what each stands for, by its name.

    Outputs of jobs that have not ended are none.
    """
    units: dict[str, Listed] = {}
    of_unit: dict[str, JobRecord | str] = {}
    for output in listed:
        if output.name.rpartition("/")[0].rpartition("/")[2] in live:
            continue
        job = of_job.get(output.name)
        name = output.name if job is None else f"job {job.id}"
        of_unit[name] = output.name if job is None else job
        before = units.get(name, Listed(name, 0, 0.0))
        units[name] = Listed(name, before.bytes + output.bytes, max(before.modified, output.modified))
    return list(units.values()), of_unit
