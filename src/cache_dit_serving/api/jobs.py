"""The routes of jobs: a request that is answered at once, and asked about later.

They are kept in the memory of the one worker that took them.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Mapping
from pathlib import Path

from starlette.requests import Request

from cache_dit_serving.api.answering import timestamp
from cache_dit_serving.api.native import NativeApi, Prepared
from cache_dit_serving.errors import InternalError, InvalidRequest, NotFound, ServingError
from cache_dit_serving.findings import cut
from cache_dit_serving.jobs.job import Job
from cache_dit_serving.jobs.submission import images_of
from cache_dit_serving.media.outputs import OutputFolder
from cache_dit_serving.schemas.answers import ErrorDetail
from cache_dit_serving.schemas.jobs import JobAnswer, JobMoment, JobsResponse, JobState
from cache_dit_serving.schemas.request import GenerateRequest

logger = logging.getLogger(__name__)

PAGE = 20
MOST_ON_A_PAGE = 100
FOLDER = "jobs"
"""Below the root of the outputs: a folder for each job."""


class JobsApi:
    """Jobs, over the same worker and folder of outputs as the other routes."""

    def __init__(self, native: NativeApi) -> None:
        self._native = native
        self._worker = native.worker
        self._settings = native.settings
        self._jobs: dict[str, Job] = {}
        """The oldest first."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def submit(self, request: GenerateRequest, http: Request) -> JobAnswer:
        """Admit a job: from here on it ends in one final state, whoever asks.

        Raises:
            ServingError: InvalidRequest, QueueFull, NotReady, or DeadlineExceeded where no speed meets its deadline.
        """
        if self._settings.server.workers > 1:
            raise InvalidRequest(
                f"this server has {self._settings.server.workers} workers, which do not share jobs; use /generate"
            )
        if request.output_format == "base64":
            raise InvalidRequest(
                "the outputs of a job are files: leave output_format out, or ask for url or path", param="output_format"
            )
        name = secrets.token_hex(12)
        kept = {"output_format": request.output_format or "url", "output_dir": request.output_dir or f"{FOLDER}/{name}"}
        prepared = await self._native.prepare(request.model_copy(update=kept), http)
        self._worker.submit(prepared.generation)
        job = self._jobs[name] = Job(name, prepared.generation)
        task = asyncio.create_task(self._follow(job, prepared))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._prune()
        return self.answer(job)

    def list(self, query: Mapping[str, str]) -> JobsResponse:
        """A page of jobs.

        Args:
            query: `state`, `limit` and `after`, each as text.

        Raises:
            InvalidRequest: one of them is not what it must be.
        """
        self._prune()
        for name in query:
            if name not in ("state", "limit", "after"):
                raise InvalidRequest(f"{cut(name)} is no parameter; there are state, limit and after", param=cut(name))
        states = [state.value for state in JobState]
        if (state := query.get("state")) not in (None, *states):
            raise InvalidRequest(f"state is {cut(state or '')!r}; it is one of {', '.join(states)}", param="state")
        limit = query.get("limit", str(PAGE))
        if not (limit.isascii() and limit.isdecimal() and 1 <= int(limit[:9]) <= MOST_ON_A_PAGE):
            raise InvalidRequest(f"limit is {cut(limit)!r}; send 1 to {MOST_ON_A_PAGE}", param="limit")
        jobs = [job for job in reversed(self._jobs.values()) if state in (None, job.state)]
        if (after := query.get("after")) is not None:
            names = [job.id for job in reversed(self._jobs.values())]
            if after not in names:
                raise InvalidRequest("after is the id of no job that is kept; begin without it", param="after")
            older = set(names[names.index(after) + 1 :])
            jobs = [job for job in jobs if job.id in older]
        page = jobs[: int(limit)]
        return JobsResponse(
            jobs=[self.answer(job).model_copy(update={"result": None}) for job in page],
            next=page[-1].id if len(jobs) > len(page) else None,
        )

    def find(self, name: str) -> Job:
        """
        Raises:
            NotFound: there is no such job, or not any more.
        """
        self._prune()
        if name not in self._jobs:
            raise NotFound("there is no job of this id; jobs that have ended are kept for a while only")
        return self._jobs[name]

    def output(self, name: str, number: str) -> tuple[Path, str]:
        """The file and media type of one output of a job.

        Args:
            number: from 0, as text.

        Raises:
            NotFound: there is none.
        """
        job = self.find(name)
        files = job.files
        if not (number.isascii() and number.isdecimal() and int(number[:9]) < len(files)):
            have = f"{len(files)} output(s), from 0" if files else f"no outputs: it is {job.state}"
            raise NotFound(f"there is no such output; this job has {have}")
        outputs = self._native.outputs
        return outputs.find(files[int(number)].relative_to(outputs.root).as_posix())

    async def delete(self, name: str) -> JobAnswer:
        """Cancel a job that has not ended; forget one that has, and its files.

        Raises:
            NotFound: there is no such job.
        """
        job = self.find(name)
        if job.state.final:
            self._forget(job)
        else:
            job.cancelled.set()
            await job.done.wait()
        return self.answer(job)

    def answer(self, job: Job) -> JobAnswer:
        """A job as it is now."""
        generation, state, progress = job.generation, job.state, job.progress
        position = starts_in_s = seconds_left = None
        if generation is not None and state is JobState.QUEUED:
            position, starts_in_s = self._worker.position(generation), self._worker.seconds_before(generation)
        elif generation is not None:
            seconds_left = self._worker.seconds_left(generation)
        return JobAnswer(
            id=job.id,
            state=state,
            history=[JobMoment(state=each, at=timestamp(at)) for each, at in job.history],
            position=position or None,
            starts_in_s=_rounded(starts_in_s),
            step=progress.step,
            steps=progress.steps,
            seconds_left=_rounded(seconds_left),
            outputs=[f"/jobs/{job.id}/outputs/{number}" for number in range(len(job.files))],
            result=job.result,
            error=ErrorDetail(**job.error.body("")["error"]) if job.error is not None else None,
        )

    async def _follow(self, job: Job, prepared: Prepared) -> None:
        """Bring a job that was admitted to its end."""
        try:
            images = await images_of(
                prepared.generation,
                self._worker,
                caller_gone=job.cancelled.wait(),
                max_request_s=self._settings.limits.max_request_s,
                deadline_s=prepared.request.deadline_s,
            )
            result, files = await self._native.finish(prepared, images)
            job.succeed(result, files)
        except ServingError as error:
            job.fail(error)
        except Exception:
            logger.exception("job %s failed", job.id)
            job.fail(InternalError())

    def _prune(self) -> None:
        """Forget those that have ended, and are too old or too many."""
        limits = self._settings.limits
        ended = [job for job in self._jobs.values() if job.state.final]
        since = time.time() - limits.keep_jobs_s
        for number, job in enumerate(ended):
            if len(ended) - number > limits.max_kept_jobs or job.history[-1][1] < since:
                self._forget(job)

    def _forget(self, job: Job) -> None:
        del self._jobs[job.id]
        for file in job.files:
            file.unlink(missing_ok=True)
        _remove_if_empty(self._native.outputs, job.id)


def _remove_if_empty(outputs: OutputFolder, name: str) -> None:
    folder = outputs.root / FOLDER / name
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)
