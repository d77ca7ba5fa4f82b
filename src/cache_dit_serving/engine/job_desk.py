"""Jobs of one server: admitted, found, listed, cancelled and forgotten.

A job that waits or runs here is in the queue like every request (`live_jobs.py`). The database has it as well from
before it is promised, and tells of those of other servers.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import replace

from cache_dit_serving.engine.background import Background
from cache_dit_serving.engine.caller import Caller
from cache_dit_serving.engine.intake import Intake
from cache_dit_serving.engine.job_files import JobFiles, folder_of
from cache_dit_serving.engine.job_lease import JobLease
from cache_dit_serving.engine.job_retention import JobRetention
from cache_dit_serving.engine.live_jobs import LiveJobs
from cache_dit_serving.engine.models import Models
from cache_dit_serving.engine.owned_jobs import OwnedJobs
from cache_dit_serving.engine.sweeping import Sweeping
from cache_dit_serving.engine.webhooks import Webhooks
from cache_dit_serving.errors import ClientGone, InvalidRequest, JobNotQueued, KeyReused, NotFound
from cache_dit_serving.jobs.job import Job, failed
from cache_dit_serving.jobs.record import JobRecord
from cache_dit_serving.jobs.shared import JobProgress, shared_folder
from cache_dit_serving.jobs.store.exchanged import Page
from cache_dit_serving.media.outputs import Stored
from cache_dit_serving.planning.fields.priority import check_priority
from cache_dit_serving.schemas.jobs import JobState
from cache_dit_serving.schemas.request import JobRequest

CANCEL_S = 60.0
"""Maximum seconds that :meth:`JobDesk.cancel` waits for a job to end."""
ELSEWHERE_S = 0.05
"""Seconds between two looks at the progress of a job that another worker runs."""
CANCEL_POLL_S = 0.2
"""Seconds between two looks at a job that another server is to cancel."""
CLOSING_S = 20.0
"""Maximum seconds to write the ends of the last jobs as the server ends."""


class JobDesk:
    """The jobs of one server, for its event loop."""

    def __init__(self, models: Models) -> None:
        engine = models.default
        settings = engine.settings
        self._models = models
        self._engine = engine
        self._background = Background()
        self._access = engine.database.access
        files = self._files = JobFiles(engine.outputs)
        folder = shared_folder(settings.server.workers)
        self._progress = None if folder is None else JobProgress(folder)
        """Progress of the jobs at all workers of this server; None where it has one."""
        self._owned = OwnedJobs(engine.database)
        self._live = LiveJobs(models, self._owned, files, self._progress, self._background)
        self._lease = JobLease(engine, self._access, self._owned, self._live, files)
        self._retention = JobRetention(settings.limits, self._access, files)
        self._webhooks = Webhooks(settings.webhooks, self._access.write)
        self._sweeping = Sweeping(settings.outputs, engine.outputs, self._access.read, self._retention.forget_all)

    def start(self) -> None:
        """Open the database, and care for its jobs from then on; in the event loop."""
        self._owned.start()
        self._background.begin(self._lease.keep_until_closing(self._background))
        self._background.begin(self._retention.prune_until_closing(self._background))
        self._background.begin(self._webhooks.send_until(self._background.closing))
        for engine in self._models.engines:
            self._background.begin(engine.quality.exchange_until_closing(self._background))
        self._background.begin(self._sweeping.sweep_until(self._background.closing))

    async def close(self) -> None:
        """Write the ends of the jobs; those that wait are for the next server. After the worker has ended."""
        await self._background.close(CLOSING_S)
        if self._engine.limits is not None:
            await self._engine.limits.close()
        for engine in self._models.engines:
            await asyncio.to_thread(engine.quality.close)
        await self._owned.close()
        await asyncio.to_thread(self._access.close)

    async def of_key(self, key: str, digest: str) -> JobRecord | None:
        """Return the job of an Idempotency-Key.

        Raises:
            KeyReused: it came with another request.
        """
        record = await self._access.read(lambda store: store.of_key(key))
        if record is not None and record.digest != digest:
            raise KeyReused("this Idempotency-Key came with another request before; send a new key with a new one")
        return record

    async def admit(self, intake: Intake, key: str | None, digest: str, prefix: str = "") -> JobRecord:
        """Admit a job: from here on it ends in one final state, whoever asks.

        Args:
            prefix: beginning of its id.

        Raises:
            KeyTaken: there is a job of its key by now.
            ServingError: InvalidRequest, QueueFull, NotReady, StoreUnavailable, or DeadlineExceeded where no speed
                meets its deadline.
        """
        # A client that goes meanwhile must not leave half of it behind.
        return await asyncio.shield(asyncio.ensure_future(self._admit(intake, key, digest, prefix)))

    async def _admit(self, intake: Intake, key: str | None, digest: str, prefix: str) -> JobRecord:
        request = intake.request
        if request.output_format == "base64":
            raise InvalidRequest(
                "the outputs of a job are files: leave output_format out, or ask for url or path", param="output_format"
            )
        if isinstance(request, JobRequest):
            self._webhooks.check(request.webhook_url)
        name = prefix + secrets.token_hex(12)
        kept = {"output_format": request.output_format or "url", "output_dir": request.output_dir or folder_of(name)}
        intake = replace(intake, request=request.model_copy(update=kept))
        engine, request = await self._models.for_request(intake.request)
        if self._models.are_several:
            # Another model may be the default one when a server that was started again draws it.
            request = request.model_copy(update={"model": engine.worker.model.name})
        intake = replace(intake, request=request)
        prepared = await engine.prepare(intake)
        generation = prepared.generation
        record = JobRecord(
            name,
            ((JobState.QUEUED, generation.submitted),),
            generation.steps,
            intake.dumped(),
            digest,
            key=key,
            caller=intake.caller.name,
            priority=generation.priority,
        )
        return await self._live.admit(record, prepared)

    def live(self, name: str) -> Job | None:
        """Return a job that waits or runs here; None for another one."""
        return self._live.get(name)

    async def find(self, name: str, caller: Caller) -> JobRecord:
        """Return a job as it is now, or as another server has told of it within the last second.

        Raises:
            NotFound: the caller has no such job, or not any more.
            StoreUnavailable: the database does not answer.
        """
        job = self._live.get(name)
        record = self._live.now(job) if job is not None else await self._access.read(lambda store: store.get(name))
        if record is None or not caller.owns(record.caller):
            raise NotFound("there is no job of this id; jobs that have ended are kept for a while only")
        return record if job is not None else self._with_progress(record)

    def _with_progress(self, record: JobRecord) -> JobRecord:
        """Return a job of another server, with its progress where that is another worker of this one."""
        progress = self._progress.read(record.id) if self._progress and record.state is JobState.RUNNING else None
        return (
            replace(record, step=progress[0], cached_steps=progress[1])
            if progress and progress[0] > record.step
            else record
        )

    async def wait_for_progress(self, record: JobRecord, seconds: float) -> None:
        """Wait until a job of another worker of this server is further, or so many seconds."""
        end = time.monotonic() + seconds
        while self._with_progress(record) is record and (left := end - time.monotonic()) > 0:
            await self._background.pause(min(left, ELSEWHERE_S if self._progress else left))
            if self._background.closing.is_set():
                return

    async def page(self, wanted: Page, caller: Caller) -> list[JobRecord]:
        """Return jobs of a caller, those of everyone for an admin.

        Raises:
            InvalidRequest: there is no job to come after.
            StoreUnavailable: the database does not answer.
        """
        whose = None if caller.admin else caller.name
        if (page := await self._access.read(lambda store: store.page(wanted, whose))) is None:
            raise InvalidRequest("after is the id of no job that is kept; begin without it", param="after")
        live = [self._live.get(record.id) for record in page]
        return [record if job is None else self._live.now(job) for record, job in zip(page, live, strict=True)]

    async def output(self, name: str, number: str, caller: Caller) -> Stored:
        """Return one output of a job.

        Args:
            number: its place from 0, as text.

        Raises:
            NotFound: the caller has no such job, or the job no such output.
            InternalError: the place of the outputs does not answer.
            StoreUnavailable: the database does not answer.
        """
        record = await self.find(name, caller)
        files = record.files
        if not (number.isascii() and number.isdecimal() and int(number[:9]) < len(files)):
            have = f"{len(files)} output(s), from 0" if files else f"no outputs: it is {record.state}"
            raise NotFound(f"there is no such output; this job has {have}")
        return await asyncio.to_thread(self._engine.outputs.find, files[int(number)])

    async def set_priority(self, name: str, priority: int, caller: Caller) -> JobRecord:
        """Have a job wait with another priority, wherever it waits; return it as it is then.

        Another server that has it in its queue reads the priority within a second.

        Raises:
            InvalidRequest: the priority is above `limits.max_priority`.
            NotFound: the caller has no such job.
            JobNotQueued: it runs, or has ended.
            StoreUnavailable: the database does not answer.
        """
        check_priority(priority, self._engine.settings.limits.max_priority)
        await self.find(name, caller)
        waits = await self._access.write(lambda store: store.set_priority(name, priority))
        if waits and (job := self._live.get(name)) is not None:
            # The database may not know yet that it has begun.
            waits = self._engine.worker.set_priority(job.generation, priority)
        if not waits:
            raise JobNotQueued("this job waits no longer, so that no priority matters; GET /jobs/{id} tells its state")
        return await self.find(name, caller)

    async def cancel(self, name: str, caller: Caller) -> JobRecord:
        """End a job that has not ended, wherever it is; return it once it has, or as it is after :data:`CANCEL_S`.

        Raises:
            InternalError: files that a killed server wrote for it cannot be deleted.
            NotFound: there is no such job.
            StoreUnavailable: the database does not answer.
        """
        end = time.monotonic() + CANCEL_S
        await self._access.write(lambda store: store.want_cancelled(name))
        while True:
            if (job := self._live.get(name)) is not None:
                job.cancelled.set()
                await job.left.wait()
            elif (claimed := await self._owned.claim(name)) is not None:
                await self._files.clear(name)
                await self._owned.put(failed(claimed, ClientGone("nobody wants it any more")))
            record = await self.find(name, caller)
            if record.state.final or time.monotonic() > end:
                return record
            await asyncio.sleep(CANCEL_POLL_S)

    async def forget(self, record: JobRecord) -> None:
        """Delete a job that has ended, and its files.

        Args:
            record: the job in its final state; :meth:`cancel` brings one there.

        Raises:
            InternalError: its files cannot be deleted.
            StoreUnavailable: the database does not answer.
        """
        assert record.state.final, "a live job is cancelled first"
        await self._retention.forget(record)
