"""Jobs between the worker's queue and the database, from their admission to when they are forgotten.

A job that waits or runs here is in the queue like every request; what is known of it is in the database, too, from
before it is promised.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from functools import partial

from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError

from cache_dit_serving.engine.caller import Caller
from cache_dit_serving.engine.engine import Engine
from cache_dit_serving.engine.intake import Intake, read
from cache_dit_serving.engine.job_answers import answer_of
from cache_dit_serving.engine.preparation import Prepared
from cache_dit_serving.engine.sweeping import Sweeping
from cache_dit_serving.engine.webhooks import Webhooks
from cache_dit_serving.errors import (
    ClientGone,
    InternalError,
    InvalidRequest,
    JobInterrupted,
    KeyReused,
    NotFound,
    NotReady,
    QueueFull,
    ServingError,
    StoreUnavailable,
)
from cache_dit_serving.jobs import metrics
from cache_dit_serving.jobs.generation import TakenOver
from cache_dit_serving.jobs.job import Job, failed, queued_again, succeeded
from cache_dit_serving.jobs.record import JobRecord
from cache_dit_serving.jobs.shared import JobProgress, shared_folder
from cache_dit_serving.jobs.store.access import AGAIN_S, StoreAccess
from cache_dit_serving.jobs.store.aged import BATCH, Ended
from cache_dit_serving.jobs.store.heart import BEAT_S, Heart
from cache_dit_serving.jobs.store.store import Page, told
from cache_dit_serving.jobs.webhooks import Webhook, webhooks_of
from cache_dit_serving.schemas.answers import timestamp
from cache_dit_serving.schemas.jobs import JobState
from cache_dit_serving.schemas.request import JobRequest

logger = logging.getLogger(__name__)

FOLDER = "jobs"
"""Below the root of the outputs: a folder for each job."""
DATABASE = "jobs.sqlite3"
"""In the local folder, wherever the outputs lie."""
FORGET_S, MORE_S = 5.0, 0.05
COUNT_S = 5.0
"""Seconds between two counts of the jobs for the metrics."""
"""Between two looks for jobs that are to be forgotten: where there are no more, and where there may be."""
ON_TIME_S = 3.0
"""For which a server must have been heard before it takes what waits at another: that one's first word comes first."""
MOST_ATTEMPTS = 3
"""Of a job during which the server ended each time."""
CANCEL_S = 60.0
"""For a job to end that is to be cancelled."""
ELSEWHERE_S = 0.05
"""Seconds between two looks at the progress of a job that another worker runs."""
LOOK_S = 0.2
CLOSING_S = 20.0
"""For what has become of the last jobs to be written as the server ends."""


class KeptJobs:
    """The jobs of one server, for its event loop."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._worker = engine.worker
        self._settings = engine.settings
        self._owner = secrets.token_hex(8)
        """This server, for the database."""
        self._access = StoreAccess(self._database())
        self._heart = Heart(self._owner, self._settings.jobs.lease_s, lambda: self._access.store)
        self._webhooks = Webhooks(self._settings.webhooks, self._access.write)
        self._sweeping = Sweeping(self._settings.outputs, engine.outputs, self._access.read, self._forget_all)
        folder = shared_folder(self._settings.server.workers)
        self._progress = None if folder is None else JobProgress(folder)
        """Of the jobs at all workers of this server."""
        self._unexpected = ""
        self._count_at = 0.0
        """Last failure that nobody thought of."""
        self._live: dict[str, Job] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.closing = asyncio.Event()
        """Set when the server ends."""

    def start(self) -> None:
        """Open the database, and care for what is in it from then on; in the event loop."""
        self._heart.start()
        self._begin(self._keep())
        self._begin(self._forget_until())
        self._begin(self._webhooks.send_until(self.closing))
        self._begin(self._sweeping.sweep_until(self.closing))

    async def close(self) -> None:
        """Write what has become of the jobs; those that wait are for the next server. After the worker has ended."""
        self.closing.set()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSING_S)
        await asyncio.to_thread(self._heart.stop)
        await asyncio.to_thread(self._access.close)

    async def of_key(self, key: str, digest: str) -> JobRecord | None:
        """The job of an Idempotency-Key.

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
            prefix: of its id.

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
        kept = {"output_format": request.output_format or "url", "output_dir": request.output_dir or f"{FOLDER}/{name}"}
        intake = replace(intake, request=request.model_copy(update=kept))
        prepared = await self._engine.prepare(intake)
        generation = prepared.generation
        history = ((JobState.QUEUED, generation.submitted),)
        record = JobRecord(
            name,
            history,
            generation.steps,
            intake.dumped(),
            digest,
            key=key,
            caller=intake.caller.name,
            priority=generation.priority,
        )
        job = self._job(record, prepared)
        self._engine.submit(prepared, partial(self._may_start, job))
        self._live[name] = job
        try:
            await self._access.write(lambda store: store.add(record, intake.uploads, self._owner, self._owned()))
        except BaseException:
            del self._live[name]
            self._worker.cancel(generation)  # nothing was promised
            raise
        finally:
            job.written.set()
        self._begin(self._follow(job, prepared))
        return self._now(job)

    def live(self, name: str) -> Job | None:
        """A job that waits or runs here."""
        return self._live.get(name)

    def _now(self, job: Job) -> JobRecord:
        """A job that is live, with where it stands in the queue."""
        generation = job.generation
        return replace(
            job.record,
            position=self._worker.position(generation) or None,
            starts_in_s=_rounded(self._worker.seconds_before(generation)),
            seconds_left=_rounded(self._worker.seconds_left(generation)),
        )

    async def find(self, name: str, caller: Caller) -> JobRecord:
        """A job as it is now, or as another server has told of it within the last second.

        Raises:
            NotFound: the caller has no such job, or not any more.
            StoreUnavailable: the database does not answer.
        """
        job = self._live.get(name)
        record = self._now(job) if job is not None else await self._access.read(lambda store: store.get(name))
        if record is None or not caller.owns(record.caller):
            raise NotFound("there is no job of this id; jobs that have ended are kept for a while only")
        return record if job is not None else self._with_progress(record)

    def _with_progress(self, record: JobRecord) -> JobRecord:
        """A job of another server, with its progress where that is another worker of this one."""
        told = self._progress.read(record.id) if self._progress and record.state is JobState.RUNNING else None
        return replace(record, step=told[0], cached_steps=told[1]) if told and told[0] > record.step else record

    async def progress_elsewhere(self, record: JobRecord, seconds: float) -> None:
        """Wait until a job of another worker of this server is further, or so many seconds."""
        end = time.monotonic() + seconds
        while self._with_progress(record) is record and (left := end - time.monotonic()) > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.closing.wait(), min(left, ELSEWHERE_S if self._progress else left))
                return

    async def page(self, wanted: Page, caller: Caller) -> list[JobRecord] | None:
        """Those of a caller; None: there is no job to come after.

        Raises:
            StoreUnavailable: the database does not answer.
        """
        whose = None if caller.admin else caller.name
        if (page := await self._access.read(lambda store: store.page(wanted, whose))) is None:
            return None
        live = [self._live.get(record.id) for record in page]
        return [record if job is None else self._now(job) for record, job in zip(page, live, strict=True)]

    async def cancel(self, name: str, caller: Caller) -> JobRecord:
        """End a job that has not ended, wherever it is; returns once it has, or as it is after a while.

        Raises:
            NotFound: there is no such job.
            StoreUnavailable: the database does not answer.
        """
        end = time.monotonic() + CANCEL_S
        await self._access.write(lambda store: store.want_cancelled(name))
        while True:
            if (job := self._live.get(name)) is not None:
                job.cancelled.set()
                await job.left.wait()
            elif (claimed := await self._claim(name)) is not None:
                await self._put(failed(claimed, ClientGone("nobody wants it any more")))
            record = await self.find(name, caller)
            if record.state.final or time.monotonic() > end:
                return record
            await asyncio.sleep(LOOK_S)

    async def _claim(self, name: str) -> JobRecord | None:
        """Take over a job, if nobody has it any more."""
        silent = self._heart.silent()
        return await self._access.write(lambda store: store.claim(name, self._owner, self._owned(), silent))

    def _job(self, record: JobRecord, prepared: Prepared) -> Job:
        loop, job = asyncio.get_running_loop(), Job(record, prepared.generation)
        prepared.generation.listen(lambda: _soon(loop, partial(self._tell_of, job)))
        return job

    def _tell_of(self, job: Job) -> None:
        """Wake the followers of a job, those at other workers too."""
        job.tell()
        if self._progress is not None and job.admitted.id in self._live:
            self._progress.write(job.admitted.id, job.generation.step, job.generation.cached_steps)

    def _may_start(self, job: Job) -> bool:
        """On the pipeline's thread: write that a job runs, unless another server has it by now."""
        job.written.wait()
        job.untold = True  # until it is written here or by :meth:`_tell`; whether it is still ours is found out then
        store = self._access.store
        if store is None or self._access.silent:
            return True
        try:
            ours = store.put(job.record, self._owner, webhooks=_webhooks(job.record), brief=True)
        except SQLAlchemyError as error:
            logger.warning("it is not written yet that job %s runs: %s", job.admitted.id, told(error))
            return True
        job.untold = False
        return ours

    async def _follow(self, job: Job, prepared: Prepared) -> None:
        """Bring a job that was admitted to its end."""
        waited_s = max(0.0, time.time() - job.admitted.history[0][1])
        try:
            outputs = await self._engine.wait(prepared, job.cancelled.wait(), waited_s=waited_s)
            response, files = await self._engine.deliver(prepared, outputs)
            record = succeeded(job.record, response.model_dump_json(), files)
        except TakenOver:
            job.taken = True
            record = job.admitted
        except NotReady as error:
            # The server ends, before it was begun or while it ran: it is for the next one.
            record = failed(job.record, error) if error.code != "draining" else _for_another(job.record)
        except ServingError as error:
            record = failed(job.record, error)
        except Exception:
            logger.exception("job %s failed", job.admitted.id)
            record = failed(job.record, InternalError())
        await self._leave(job, record)

    async def _leave(self, job: Job, record: JobRecord) -> None:
        """Write what has become of a job, however long the database takes to take it."""
        taken, told_of = job.taken, False
        while not taken:
            try:
                taken = not await self._put(record, keep=False) and not await self._is_written(record)
                break
            except StoreUnavailable as error:
                if not told_of:
                    logger.warning("what has become of job %s is not written yet: %s", record.id, error.message)
                told_of = True
                if self.closing.is_set():
                    break
                await asyncio.sleep(AGAIN_S)
        if taken:
            if record is job.admitted or job.generation.started is None:
                logger.info("job %s was taken over by another server", record.id)
            else:
                logger.warning("job %s ran here although another server had it by then", record.id)
            with contextlib.suppress(InternalError):  # the log has it
                await self._unlink(record)
        del self._live[record.id]
        if self._progress is not None:
            self._progress.remove(record.id)
        job.left.set()
        job.tell()

    async def _is_written(self, record: JobRecord) -> bool:
        """Whether a job ended in the database as here: the answer to an attempt before may have been lost."""
        stored = await self._access.read(lambda store: store.get(record.id))
        return stored is not None and (stored.history, stored.files) == (record.history, record.files)

    async def _keep(self) -> None:
        """Tell of the jobs here, and take over those of servers that do not live."""
        while not self.closing.is_set():
            try:
                if await self._access.open():
                    await self._tell()
                    await self._count()
                    if self._worker.state == "ready":
                        await self._adopt()
                        await self._help()
            except (StoreUnavailable, InternalError):
                pass  # the log has it
            except Exception as error:
                if repr(error) != self._unexpected:
                    logger.exception("the jobs of the database are not cared for")
                self._unexpected = repr(error)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.closing.wait(), BEAT_S)

    async def _tell(self) -> None:
        """Say how far the jobs here are, and hear what has become of them meanwhile."""
        jobs = dict(self._live)
        for job in jobs.values():
            if job.untold:
                with contextlib.suppress(StoreUnavailable):  # one row that somebody holds is none of the others' matter
                    job.untold = not await self._put(job.record)
        records = [self._now(job) for job in jobs.values()]
        mine = await self._access.write(lambda store: store.tell(self._owner, self._owned(), records))
        for name, job in jobs.items():
            if name not in mine and self._live.get(name) is job:
                job.taken = True
                job.cancelled.set()
            elif mine.get(name):
                job.cancelled.set()
        # Promised while the database did not answer: nobody here knows of them.
        if forgotten := [name for name in mine if name not in jobs and name not in self._live]:
            await self._access.write(lambda store: store.release(forgotten, self._owner))

    async def _count(self) -> None:
        """Have the metrics say how many jobs there are, by state."""
        if time.monotonic() < self._count_at:
            return
        self._count_at = time.monotonic() + COUNT_S
        counts = await self._access.read(lambda store: store.counts())
        for state in JobState:
            metrics.JOBS.labels(state).set(counts.get(state, 0))

    async def _help(self) -> None:
        """Take a job that waits at another server, if this one is idle."""
        queue = self._worker.queue()
        if queue.running or queue.waiting or self._heart.on_time_s() < ON_TIME_S:
            return
        record = await self._access.write(lambda store: store.take_waiting(self._owner, self._owned()))
        if record is not None:
            await self._resume(record)

    async def _forget_until(self) -> None:
        """Forget jobs that have ended, and are too old or too many, until the server ends."""
        limits = self._settings.limits
        while not self.closing.is_set():
            wait_s = FORGET_S
            with contextlib.suppress(StoreUnavailable, InternalError):  # the log has it
                since = time.time() - limits.keep_jobs_s
                due = await self._access.read(lambda store: store.aged.surplus(since, limits.max_kept_jobs))  # noqa: B023
                if len(await self._forget_all(due)) == BATCH:
                    wait_s = MORE_S
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.closing.wait(), wait_s)

    async def _adopt(self) -> None:
        """Take over as many jobs that nobody has as there is room for."""
        room = self._settings.limits.max_queue - self._worker.queue().waiting
        if room <= 0:
            return
        silent = self._heart.silent()
        for record in await self._access.write(lambda store: store.adopt(self._owner, self._owned(), room, silent)):
            if record.id in self._live:
                continue  # given up a moment ago, and not left yet
            ran = record.state is JobState.RUNNING
            if ran and (self._settings.jobs.interrupted == "fail" or record.attempts >= MOST_ATTEMPTS):
                times = f"{record.attempts} times " if record.attempts > 1 else ""
                error = JobInterrupted(f"the server ended {times}while this job ran; submit it again")
                await self._clear(record.id)
                await self._put(failed(record, error))
            else:
                await self._resume(queued_again(record) if ran else record)

    async def _resume(self, record: JobRecord) -> None:
        """Put a job that another server had into the queue."""
        await self._put(record)
        await self._clear(record.id)
        uploads = await self._access.read(lambda store: store.uploads(record.id))
        try:
            prepared = await self._engine.prepare(read(record.request, uploads))
            job = self._job(record, prepared)
            job.written.set()
            self._worker.submit(prepared.generation, may_start=partial(self._may_start, job))
        except (NotReady, QueueFull):
            await self._put(record, keep=False)
            return
        except ValidationError:
            error: ServingError = JobInterrupted("the server was exchanged for another version; submit this job again")
        except ServingError as raised:
            error = raised
        else:
            logger.info("job %s is taken over", record.id)
            self._live[record.id] = job
            self._begin(self._follow(job, prepared))
            return
        await self._put(failed(record, error))

    def _owned(self) -> float:
        """Until when this server has its jobs, if it says now that it lives."""
        return time.time() + self._settings.jobs.lease_s

    async def forget(self, record: JobRecord) -> None:
        """Delete a job that has ended, and its files.

        Raises:
            InternalError: its files cannot be deleted.
            StoreUnavailable: the database does not answer.
        """
        # In this order: a job whose files are gone is forgotten next time, files without a job are not.
        await self._unlink(record)
        await self._access.write(lambda store: store.aged.delete([record.id]))

    async def _forget_all(self, jobs: Sequence[Ended]) -> list[Ended]:
        """Delete jobs that have ended, and their files; returns those that are gone."""
        gone = await asyncio.to_thread(self._unlinked, jobs)
        if gone:
            await self._access.write(lambda store: store.aged.delete([job.id for job in gone]))
        return gone

    def _unlinked(self, jobs: Sequence[Ended]) -> list[Ended]:
        """Delete the files of jobs; returns those that have none any more."""
        gone = []
        for job in jobs:
            with contextlib.suppress(InternalError):  # the log has it; the others are none the worse for it
                self._engine.outputs.delete(job.files, f"{FOLDER}/{job.id}")
                gone.append(job)
        return gone

    async def _unlink(self, record: JobRecord) -> None:
        await asyncio.to_thread(self._engine.outputs.delete, record.files, f"{FOLDER}/{record.id}")

    async def _clear(self, job: str) -> None:
        """Delete what a server wrote of a job that was killed, or taken over, before it could say so."""
        await asyncio.to_thread(self._engine.outputs.clear, f"{FOLDER}/{job}")

    def _database(self) -> str:
        root = self._settings.outputs.root.expanduser().absolute()
        return self._settings.jobs.database or f"sqlite:///{root / DATABASE}"

    async def _put(self, record: JobRecord, *, keep: bool = True) -> bool:
        told = _webhooks(record)
        return await self._access.write(lambda store: store.put(record, self._owner, keep=keep, webhooks=told))

    def _begin(self, task: Coroutine[None, None, None]) -> None:
        begun = asyncio.create_task(task)
        self._tasks.add(begun)
        begun.add_done_callback(self._tasks.discard)


def _for_another(record: JobRecord) -> JobRecord:
    return queued_again(record) if record.state is JobState.RUNNING else record


def _webhooks(record: JobRecord) -> list[Webhook]:
    return webhooks_of(record, answer_of(record).model_dump_json(), timestamp(record.history[-1][1]))


def _soon(loop: asyncio.AbstractEventLoop, what: Callable[[], None]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: the server ends while a generation runs
        loop.call_soon_threadsafe(what)


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)
