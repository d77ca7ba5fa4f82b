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
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError

from cache_dit_serving.api.access import Caller
from cache_dit_serving.api.job_answers import answer_of
from cache_dit_serving.api.native import NativeApi, Prepared
from cache_dit_serving.api.received import Received, read
from cache_dit_serving.api.sweeping import Sweeping
from cache_dit_serving.api.webhooks import Webhooks
from cache_dit_serving.errors import (
    ClientGone,
    InternalError,
    InvalidRequest,
    JobInterrupted,
    KeyReused,
    LoadError,
    NotFound,
    NotReady,
    QueueFull,
    ServingError,
    StoreUnavailable,
)
from cache_dit_serving.jobs.generation import TakenOver
from cache_dit_serving.jobs.job import Job, failed, queued_again, succeeded
from cache_dit_serving.jobs.record import JobRecord
from cache_dit_serving.jobs.store.store import JobStore, Page, told
from cache_dit_serving.jobs.submission import images_of
from cache_dit_serving.jobs.webhooks import Webhook, webhooks_of
from cache_dit_serving.schemas.answers import timestamp
from cache_dit_serving.schemas.jobs import JobState
from cache_dit_serving.schemas.request import JobRequest

logger = logging.getLogger(__name__)

T = TypeVar("T")

FOLDER = "jobs"
"""Below the root of the outputs: a folder for each job."""
DATABASE = "jobs.sqlite3"
"""In the local folder, wherever the outputs lie."""
BEAT_S = 1.0
"""Between two signs of life in the database."""
MOST_ATTEMPTS = 3
"""Of a job during which the server ended each time."""
AGAIN_S = 2.0
"""Before the database is asked again to take what has become of a job."""
CANCEL_S = 60.0
"""For a job to end that is to be cancelled."""
LOOK_S = 0.2
CLOSING_S = 20.0
"""For what has become of the last jobs to be written as the server ends."""


class KeptJobs:
    """The jobs of one server, for its event loop."""

    def __init__(self, native: NativeApi) -> None:
        self._native = native
        self._worker = native.worker
        self._settings = native.settings
        self._owner = secrets.token_hex(8)
        """This server, for the database."""
        self._store: JobStore | None = None
        self._unopened = ""
        """Why it is not open."""
        self._silent = False
        """Whether it did not answer the last time."""
        self._access = ThreadPoolExecutor(1, thread_name_prefix="jobs-store")
        self._webhooks = Webhooks(self._settings.webhooks, self._ask)
        self._sweeping = Sweeping(self._settings.outputs, native.outputs, self._ask, self.forget)
        self._live: dict[str, Job] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.closing = asyncio.Event()
        """Set when the server ends."""

    def start(self) -> None:
        """Open the database, and care for what is in it from then on; in the event loop."""
        self._begin(self._keep())
        self._begin(self._webhooks.send_until(self.closing))
        self._begin(self._sweeping.sweep_until(self.closing))

    async def close(self) -> None:
        """Write what has become of the jobs; those that wait are for the next server. After the worker has ended."""
        self.closing.set()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSING_S)
        self._access.shutdown()
        if self._store is not None:
            self._store.close()

    async def of_key(self, key: str, digest: str) -> JobRecord | None:
        """The job of an Idempotency-Key.

        Raises:
            KeyReused: it came with another request.
        """
        record = await self._ask(lambda store: store.of_key(key))
        if record is not None and record.digest != digest:
            raise KeyReused("this Idempotency-Key came with another request before; send a new key with a new one")
        return record

    async def admit(self, asked: Received, key: str | None, digest: str, prefix: str = "") -> JobRecord:
        """Admit a job: from here on it ends in one final state, whoever asks.

        Args:
            prefix: of its id.

        Raises:
            KeyTaken: there is a job of its key by now.
            ServingError: InvalidRequest, QueueFull, NotReady, StoreUnavailable, or DeadlineExceeded where no speed
                meets its deadline.
        """
        # A client that goes meanwhile must not leave half of it behind.
        return await asyncio.shield(asyncio.ensure_future(self._admit(asked, key, digest, prefix)))

    async def _admit(self, asked: Received, key: str | None, digest: str, prefix: str) -> JobRecord:
        request = asked.request
        if request.output_format == "base64":
            raise InvalidRequest(
                "the outputs of a job are files: leave output_format out, or ask for url or path", param="output_format"
            )
        if isinstance(request, JobRequest):
            self._webhooks.check(request.webhook_url)
        name = prefix + secrets.token_hex(12)
        kept = {"output_format": request.output_format or "url", "output_dir": request.output_dir or f"{FOLDER}/{name}"}
        asked = Received(**{**vars(asked), "request": request.model_copy(update=kept)})
        prepared = await self._native.prepare(asked)
        generation = prepared.generation
        history = ((JobState.QUEUED, generation.submitted),)
        record = JobRecord(
            name,
            history,
            generation.steps,
            asked.dumped(),
            digest,
            key=key,
            caller=asked.caller.name,
            priority=generation.priority,
        )
        job = self._job(record, prepared)
        self._worker.submit(generation, asked.caller.max_live)
        self._live[name] = job
        try:
            await self._ask(lambda store: store.add(record, asked.uploads, self._owner, self._owned()))
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
        record = self._now(job) if job is not None else await self._ask(lambda store: store.get(name))
        if record is None or not caller.owns(record.caller):
            raise NotFound("there is no job of this id; jobs that have ended are kept for a while only")
        return record

    async def page(self, wanted: Page, caller: Caller) -> list[JobRecord] | None:
        """Those of a caller; None: there is no job to come after.

        Raises:
            StoreUnavailable: the database does not answer.
        """
        whose = None if caller.admin else caller.name
        if (page := await self._ask(lambda store: store.page(wanted, whose))) is None:
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
        await self._ask(lambda store: store.want_cancelled(name))
        while True:
            if (job := self._live.get(name)) is not None:
                job.cancelled.set()
                await job.left.wait()
            elif (claimed := await self._ask(lambda store: store.claim(name, self._owner, self._owned()))) is not None:
                await self._put(failed(claimed, ClientGone("nobody wants it any more")))
            record = await self.find(name, caller)
            if record.state.final or time.monotonic() > end:
                return record
            await asyncio.sleep(LOOK_S)

    def _job(self, record: JobRecord, prepared: Prepared) -> Job:
        loop, job = asyncio.get_running_loop(), Job(record, prepared.generation)
        prepared.generation.changed = lambda: _soon(loop, job)
        prepared.generation.may_start = lambda: self._may_start(job)
        return job

    def _may_start(self, job: Job) -> bool:
        """On the pipeline's thread: write that a job runs, unless another server has it by now."""
        assert self._store is not None
        job.written.wait()
        try:
            return self._store.put(job.record, self._owner, webhooks=_webhooks(job.record))
        except SQLAlchemyError as error:
            logger.error("it is not written that job %s runs: %s", job.admitted.id, told(error))
            return True  # whether it is still ours is found out at its end

    async def _follow(self, job: Job, prepared: Prepared) -> None:
        """Bring a job that was admitted to its end."""
        waited_s = max(0.0, time.time() - job.admitted.history[0][1])
        deadline_s = prepared.request.deadline_s
        try:
            images = await images_of(
                prepared.generation,
                self._worker,
                caller_gone=job.cancelled.wait(),
                max_request_s=self._settings.limits.max_request_s,
                deadline_s=None if deadline_s is None else max(0.001, deadline_s - waited_s),
            )
            response, files = await self._native.finish(prepared, images)
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
        taken = job.taken
        while not taken:
            try:
                taken = not await self._put(record, keep=False) and not await self._is_written(record)
                break
            except StoreUnavailable as error:
                logger.warning("what has become of job %s is not written yet: %s", record.id, error.message)
                if self.closing.is_set():
                    break
                await asyncio.sleep(AGAIN_S)
        if taken:
            logger.info("job %s was taken over by another server", record.id)
            with contextlib.suppress(InternalError):  # the log has it
                await self._unlink(record)
        del self._live[record.id]
        job.left.set()
        job.tell()

    async def _is_written(self, record: JobRecord) -> bool:
        """Whether a job ended in the database as here: the answer to an attempt before may have been lost."""
        stored = await self._ask(lambda store: store.get(record.id))
        return stored is not None and (stored.history, stored.files) == (record.history, record.files)

    async def _keep(self) -> None:
        """Show that this server lives, take over jobs of one that does not, and forget what is too old."""
        while not self.closing.is_set():
            try:
                if self._store is None:
                    self._store = await self._on_thread(lambda: JobStore(self._database()))
                await self._beat()
                if self._worker.state == "ready":
                    await self._adopt()
                    await self._help()
                await self._prune()
            except LoadError as error:
                if str(error) != self._unopened:
                    logger.error("%s", error)
                self._unopened = str(error)  # for the log: it may name hosts and folders
            except (StoreUnavailable, InternalError):
                pass  # the log has it
            except Exception:
                logger.exception("the jobs of the database are not cared for")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.closing.wait(), BEAT_S)

    async def _beat(self) -> None:
        """Say that this server lives and how far its jobs are, and hear what has become of them meanwhile."""
        jobs = dict(self._live)
        told = [self._now(job) for job in jobs.values()]
        mine = await self._ask(lambda store: store.beat(self._owner, self._owned(), told))
        for name, job in jobs.items():
            if name not in mine and self._live.get(name) is job:
                job.taken = True
                job.cancelled.set()
            elif mine.get(name):
                job.cancelled.set()
        # Promised while the database did not answer: nobody here knows of them.
        if forgotten := [name for name in mine if name not in jobs and name not in self._live]:
            await self._ask(lambda store: store.release(forgotten, self._owner))

    async def _help(self) -> None:
        """Take a job that waits at another server, if this one is idle."""
        queue = self._worker.queue()
        if queue.running or queue.waiting:
            return
        if (record := await self._ask(lambda store: store.take_waiting(self._owner, self._owned()))) is not None:
            await self._resume(record)

    async def _prune(self) -> None:
        """Forget jobs that have ended, and are too old or too many."""
        limits = self._settings.limits
        since = time.time() - limits.keep_jobs_s
        for record in await self._ask(lambda store: store.surplus(since, limits.max_kept_jobs)):
            await self.forget(record)

    async def _adopt(self) -> None:
        """Take over as many jobs that nobody has as there is room for."""
        room = self._settings.limits.max_queue - self._worker.queue().waiting
        if room <= 0:
            return
        for record in await self._ask(lambda store: store.adopt(self._owner, self._owned(), room)):
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
        uploads = await self._ask(lambda store: store.uploads(record.id))
        try:
            prepared = await self._native.prepare(read(record.request, uploads))
            job = self._job(record, prepared)
            job.written.set()
            self._worker.submit(prepared.generation)
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
        await self._ask(lambda store: store.delete(record.id))

    async def _unlink(self, record: JobRecord) -> None:
        await asyncio.to_thread(self._native.outputs.delete, record.files, f"{FOLDER}/{record.id}")

    async def _clear(self, job: str) -> None:
        """Delete what a server wrote of a job that was killed, or taken over, before it could say so."""
        await asyncio.to_thread(self._native.outputs.clear, f"{FOLDER}/{job}")

    def _database(self) -> str:
        root = self._settings.outputs.root.expanduser().absolute()
        return self._settings.jobs.database or f"sqlite:///{root / DATABASE}"

    async def _put(self, record: JobRecord, *, keep: bool = True) -> bool:
        told = _webhooks(record)
        return await self._ask(lambda store: store.put(record, self._owner, keep=keep, webhooks=told))

    async def _ask(self, what: Callable[[JobStore], T]) -> T:
        """Have the database do something, on the thread that speaks to it.

        Raises:
            StoreUnavailable: it does not answer.
        """
        if (store := self._store) is None:
            raise StoreUnavailable("the database of jobs is not open; the server's log says why", retry_after_s=AGAIN_S)
        try:
            answer = await self._on_thread(lambda: what(store))
        except SQLAlchemyError as error:
            if not self._silent:
                logger.error("the database of jobs does not answer: %s", told(error))
            self._silent = True
            raise StoreUnavailable("the database of jobs does not answer", retry_after_s=AGAIN_S) from error
        if self._silent:
            logger.info("the database of jobs answers again")
        self._silent = False
        return answer

    async def _on_thread(self, what: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._access, what)

    def _begin(self, task: Coroutine[None, None, None]) -> None:
        begun = asyncio.create_task(task)
        self._tasks.add(begun)
        begun.add_done_callback(self._tasks.discard)


def _for_another(record: JobRecord) -> JobRecord:
    return queued_again(record) if record.state is JobState.RUNNING else record


def _webhooks(record: JobRecord) -> list[Webhook]:
    return webhooks_of(record, answer_of(record).model_dump_json(), timestamp(record.history[-1][1]))


def _soon(loop: asyncio.AbstractEventLoop, job: Job) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: the server ends while a generation runs
        loop.call_soon_threadsafe(job.tell)


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)
