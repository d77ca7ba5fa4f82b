"""Jobs that wait or run at this server, from its queue to their end in the database."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from pydantic import ValidationError

from cache_dit_serving.engine.background import Background
from cache_dit_serving.engine.intake import read
from cache_dit_serving.engine.job_files import JobFiles
from cache_dit_serving.engine.models import Models
from cache_dit_serving.engine.owned_jobs import OwnedJobs
from cache_dit_serving.engine.preparation import Prepared
from cache_dit_serving.errors import (
    InternalError,
    JobInterrupted,
    NotReady,
    QueueFull,
    ServingError,
    StoreUnavailable,
)
from cache_dit_serving.jobs.generation import TakenOver
from cache_dit_serving.jobs.job import Job, failed, queued_again, succeeded
from cache_dit_serving.jobs.record import JobRecord
from cache_dit_serving.jobs.shared import JobProgress
from cache_dit_serving.jobs.store.access import AGAIN_S
from cache_dit_serving.schemas.jobs import JobState

logger = logging.getLogger(__name__)


class LiveJobs:
    """Jobs in the queue of this server, and the one that runs; for its event loop."""

    def __init__(
        self,
        models: Models,
        owned: OwnedJobs,
        files: JobFiles,
        progress: JobProgress | None,
        background: Background,
    ) -> None:
        """
        Args:
            progress: shared by the workers of this server; None where it has one worker.
        """
        self._models = models
        self._worker = models.default.worker
        self._owned = owned
        self._files = files
        self._progress = progress
        self._background = background
        self._live: dict[str, Job] = {}

    def get(self, name: str) -> Job | None:
        """Return a job that waits or runs here."""
        return self._live.get(name)

    def all(self) -> dict[str, Job]:
        """Return the jobs as they are now, by id."""
        return dict(self._live)

    def now(self, job: Job) -> JobRecord:
        """Return a job with its place in the queue and the estimates of its times."""
        generation = job.generation
        return replace(
            job.record,
            position=self._worker.position(generation) or None,
            starts_in_s=_rounded(self._worker.seconds_before(generation)),
            seconds_left=_rounded(self._worker.seconds_left(generation)),
        )

    async def admit(self, record: JobRecord, prepared: Prepared) -> JobRecord:
        """Let a new job queue, and write it; return it as it is then.

        Raises:
            KeyTaken: there is a job of its key.
            ServingError: QueueFull, RateLimited, NotReady or StoreUnavailable.
        """
        job = self._job(record, prepared)
        engine = self._models.find(prepared.intake.request.model)
        await engine.submit(prepared, partial(self._may_start, job), job=record.id)
        self._live[record.id] = job
        try:
            await self._owned.add(record, prepared.intake.uploads)
        except BaseException:
            del self._live[record.id]
            self._worker.cancel(prepared.generation)  # nothing was promised
            raise
        finally:
            job.written.set()
        self._background.begin(self._follow(job, prepared))
        return self.now(job)

    async def resume(self, record: JobRecord) -> None:
        """Put a job that another server had into the queue; one that cannot run any more fails.

        Raises:
            InternalError: the files of its attempts before cannot be deleted.
            StoreUnavailable: the database does not answer.
        """
        await self._owned.put(record)
        await self._files.clear(record.id)
        uploads = await self._owned.uploads(record.id)
        try:
            intake = read(record.request, uploads)
            engine = self._models.find(intake.request.model)
            if engine.worker.load() is not None:
                # Not waited for here: the other jobs are told of meanwhile. It is taken again once the model is there.
                await self._owned.put(record, keep=False)
                return
            prepared = await engine.prepare(intake)
            job = self._job(record, prepared)
            job.written.set()
            prepared.generation.set_priority(record.priority)  # which may have changed since its request
            await engine.submit(prepared, partial(self._may_start, job), job=record.id, resumed=True)
        except (NotReady, QueueFull):
            await self._owned.put(record, keep=False)
            return
        except ValidationError:
            error: ServingError = JobInterrupted("the server was exchanged for another version; submit this job again")
        except ServingError as raised:
            error = raised
        else:
            logger.info("job %s is taken over", record.id)
            self._live[record.id] = job
            self._background.begin(self._follow(job, prepared))
            return
        await self._owned.put(failed(record, error))

    def _job(self, record: JobRecord, prepared: Prepared) -> Job:
        loop, job = asyncio.get_running_loop(), Job(record, prepared.generation)

        def on_change() -> None:
            # A loop that wakes takes the interpreter's lock from the pipeline's thread: not at each step for nobody.
            if job.followed or self._progress is not None:
                _soon(loop, partial(self._tell_of, job))

        prepared.generation.listen(on_change)
        return job

    def _tell_of(self, job: Job) -> None:
        """Wake the followers of a job, those at other workers too."""
        job.tell()
        if self._progress is not None and job.admitted.id in self._live:
            self._progress.write(job.admitted.id, job.generation.step, job.generation.cached_steps)

    def _may_start(self, job: Job) -> bool:
        """Write that a job runs, on the pipeline's thread; return False where another server owns it by now."""
        job.written.wait()
        ours = self._owned.put_at_once(job.record)
        job.untold = ours is None  # the lease writes it then, and finds out whether it is still ours
        return ours is not False

    async def _follow(self, job: Job, prepared: Prepared) -> None:
        """Bring a job that was admitted to its end."""
        waited_s = max(0.0, time.time() - job.admitted.history[0][1])
        try:
            engine = self._models.find(prepared.intake.request.model)
            outputs = await engine.wait(prepared, job.cancelled.wait(), waited_s=waited_s)
            response, files = await engine.deliver(prepared, outputs)
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
        """Write the end of a job, however long the database takes to take it."""
        taken, told_of = job.taken, False
        while not taken:
            try:
                taken = not await self._owned.put(record, keep=False) and not await self._owned.is_written(record)
                break
            except StoreUnavailable as error:
                if not told_of:
                    logger.warning("what has become of job %s is not written yet: %s", record.id, error.message)
                told_of = True
                if self._background.closing.is_set():
                    break
                await asyncio.sleep(AGAIN_S)
        if taken:
            if record is job.admitted or not job.generation.ran:
                logger.info("job %s was taken over by another server", record.id)
            else:
                logger.warning("job %s ran here although another server had it by then", record.id)
            with contextlib.suppress(InternalError):  # the log has it
                await self._files.delete(record)
        del self._live[record.id]
        if self._progress is not None:
            self._progress.remove(record.id)
        job.left.set()
        job.tell()


def _for_another(record: JobRecord) -> JobRecord:
    return queued_again(record) if record.state is JobState.RUNNING else record


def _soon(loop: asyncio.AbstractEventLoop, what: Callable[[], None]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: the server ends while a generation runs
        loop.call_soon_threadsafe(what)


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)
