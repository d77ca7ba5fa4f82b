"""Deletes outputs that are too old or too many, and with one of a job's the whole job."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from cache_dit_serving.config.settings import OutputSettings
from cache_dit_serving.errors import InternalError, StoreUnavailable
from cache_dit_serving.jobs import metrics
from cache_dit_serving.jobs.record import JobRecord
from cache_dit_serving.jobs.store.store import JobStore
from cache_dit_serving.media.outputs import Outputs
from cache_dit_serving.media.retention import due_of

logger = logging.getLogger(__name__)

FIRST_S, AGAIN_S = 2.0, 60.0
"""After the start, and from one sweep to the next."""
HALF_WRITTEN_S = 3600.0
"""A file that is still being written after so long is one of a process that was killed."""

Ask = Callable[[Callable[[JobStore], Any]], Awaitable[Any]]


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
                wait_s = FIRST_S  # the log has it
            except Exception:
                logger.exception("outputs are not swept")

    async def _sweep(self) -> None:
        now = time.time()
        await asyncio.to_thread(self._outputs.tidy, now - HALF_WRITTEN_S)
        listed = await asyncio.to_thread(self._outputs.listed)
        due = due_of(listed, now, self._settings.keep_s, self._settings.max_bytes)
        if not due:
            return
        # Asked after the outputs were listed: one whose job was live then is not deleted.
        jobs, live = await self._ask(lambda store: store.with_files())
        of_job = {file: job for job in jobs for file in job.files}
        forgotten: set[str] = set()
        deleted = freed = 0
        for output, reason in due:
            folder, _, _ = output.name.rpartition("/")
            if folder.rpartition("/")[2] in live:
                continue
            job = of_job.get(output.name)
            if job is None:
                await asyncio.to_thread(self._outputs.delete, [output.name], folder)
            elif job.id not in forgotten:
                await self._forget(job)
                forgotten.add(job.id)
            metrics.OUTPUTS_DELETED.labels(reason).inc()
            deleted, freed = deleted + 1, freed + output.bytes
        logger.info("%d outputs of %d bytes deleted, and %d jobs forgotten with them", deleted, freed, len(forgotten))
