"""The routes of jobs: a request that is answered at once, and asked about later.

They are kept in the memory of the one worker that took them.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response

from cache_dit_serving.api.native import NativeApi, Prepared
from cache_dit_serving.errors import InternalError, InvalidRequest, KeyReused, NotFound, ServingError
from cache_dit_serving.findings import cut
from cache_dit_serving.jobs.events import Event
from cache_dit_serving.jobs.job import Job
from cache_dit_serving.jobs.submission import images_of
from cache_dit_serving.media.outputs import OutputFolder
from cache_dit_serving.schemas.answers import ErrorDetail, timestamp
from cache_dit_serving.schemas.jobs import (
    Draining,
    EventKind,
    JobAnswer,
    JobMoment,
    JobPosition,
    JobsResponse,
    JobState,
)
from cache_dit_serving.schemas.request import GenerateRequest

logger = logging.getLogger(__name__)

RESPOND_ASYNC = "respond-async"
KEY = re.compile(r"[!-~]{1,255}")
PAGE = 20
MOST_ON_A_PAGE = 100
TICK_S = 1.0
"""Between two looks at what is so at the moment, for the followers of a job that does nothing."""
HEART_BEAT_S = 10.0
RECONNECT_MS = 2000
"""For a follower's EventSource to wait before it comes again."""
FOLDER = "jobs"
"""Below the root of the outputs: a folder for each job."""


class _Keyed(NamedTuple):
    """What came with an Idempotency-Key."""

    digest: str
    job: asyncio.Future[Job]
    """Done once it is admitted; cancelled if it was not."""


class JobsApi:
    """Jobs, over the same worker and folder of outputs as the other routes."""

    def __init__(self, native: NativeApi) -> None:
        self._native = native
        self._worker = native.worker
        self._settings = native.settings
        self._jobs: dict[str, Job] = {}
        """The oldest first."""
        self._keys: dict[str, _Keyed] = {}
        """By Idempotency-Key."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def accepted(self, request: GenerateRequest, http: Request) -> Response:
        """Admit a job, and answer with where to ask about it.

        A request whose Idempotency-Key came with the same request before gets the job of that one.

        Raises:
            ServingError: as :meth:`_submit`, and KeyReused.
        """
        key = _idempotency_key(http.headers)
        known = key is not None and key in self._keys
        job = await (self._submit(request, http) if key is None else self._submit_once(key, request, http))
        headers = {"Location": f"/jobs/{job.id}"}
        if known:
            headers["Idempotency-Replayed"] = "true"
        if prefers_job(http.headers):
            headers["Preference-Applied"] = RESPOND_ASYNC
        return Response(
            self.answer(job).model_dump_json(), status_code=202, media_type="application/json", headers=headers
        )

    async def _submit_once(self, key: str, request: GenerateRequest, http: Request) -> Job:
        """The job of a key, which is submitted if it is new.

        Raises:
            ServingError: as :meth:`_submit`, and KeyReused.
        """
        digest = _digest(request, http)
        while (keyed := self._keys.get(key)) is not None:
            if keyed.digest != digest:
                raise KeyReused("this Idempotency-Key came with another request before; send a new key with a new one")
            try:
                return await asyncio.shield(keyed.job)
            except asyncio.CancelledError:
                if not keyed.job.cancelled():
                    raise
        keyed = self._keys[key] = _Keyed(digest, asyncio.get_running_loop().create_future())
        try:
            job = await self._submit(request, http)
        except BaseException:
            # Nothing was admitted: whoever waits for the same tries by itself.
            del self._keys[key]
            keyed.job.cancel()
            raise
        job.key = key
        keyed.job.set_result(job)
        return job

    async def _submit(self, request: GenerateRequest, http: Request) -> Job:
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
        loop = asyncio.get_running_loop()
        job = Job(name, prepared.generation)
        prepared.generation.changed = lambda: _soon(loop, self._tell, job)
        self._worker.submit(prepared.generation)
        self._jobs[name] = job
        task = asyncio.create_task(self._follow(job, prepared))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._prune()
        return job

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

    async def events(self, job: Job, seen: int) -> AsyncIterator[bytes]:
        """A job's events to its last, as server-sent events.

        Args:
            seen: number of the last one that the follower has.
        """
        yield f"retry: {RECONNECT_MS}\n\n".encode()
        said = time.monotonic()
        position: int | None = None
        draining = False
        async for event in job.events.after(seen, silence_s=TICK_S):
            if event is not None:
                yield event.encoded()
                said = time.monotonic()
            now: list[tuple[EventKind, JobPosition | Draining]] = []
            generation = job.generation
            if generation is not None and (place := self._worker.position(generation)) and place != position:
                position = place
                starts_in_s = _rounded(self._worker.seconds_before(generation))
                now.append((EventKind.POSITION, JobPosition(position=place, starts_in_s=starts_in_s)))
            if self._worker.state == "draining" and not draining and not job.state.final:
                draining = True
                now.append((EventKind.DRAINING, Draining(message="the server is shutting down; what runs ends before")))
            for kind, data in now:
                yield Event(None, kind, data.model_dump_json()).encoded()
            if not now and time.monotonic() - said > HEART_BEAT_S:
                yield b": heart-beat\n\n"
                said = time.monotonic()

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
            cached_steps=progress.cached_steps,
            seconds_left=_rounded(seconds_left),
            outputs=[f"/jobs/{job.id}/outputs/{number}" for number in range(len(job.files))],
            result=job.result,
            error=ErrorDetail(**job.error.body("")["error"]) if job.error is not None else None,
        )

    def _tell(self, job: Job) -> None:
        if (generation := job.generation) is not None:
            job.tell(self._worker.seconds_left(generation))

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
        if job.key is not None:
            del self._keys[job.key]
        for file in job.files:
            file.unlink(missing_ok=True)
        _remove_if_empty(self._native.outputs, job.id)


def _remove_if_empty(outputs: OutputFolder, name: str) -> None:
    folder = outputs.root / FOLDER / name
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def prefers_job(headers: Headers) -> bool:
    """Whether a request wants to be a job, RFC 7240."""
    preferences = ",".join(headers.getlist("Prefer")).lower().split(",")
    return RESPOND_ASYNC in (preference.partition(";")[0].strip() for preference in preferences)


def _idempotency_key(headers: Headers) -> str | None:
    key = headers.get("Idempotency-Key")
    if key is not None and not KEY.fullmatch(key):
        raise InvalidRequest(f"the header Idempotency-Key is {cut(key)!r}; send 1 to 255 letters, digits or signs")
    return key


def _digest(request: GenerateRequest, http: Request) -> str:
    """Of a request and the files that came with it."""
    digest = hashlib.sha256(request.model_dump_json(exclude_unset=True).encode())
    for upload in http.scope["state"]["uploads"]:
        content = upload.encode() if isinstance(upload, str) else upload
        digest.update(len(content).to_bytes(8) + content)
    return digest.hexdigest()


def last_event_of(headers: Mapping[str, str]) -> int:
    """The number of the last event that a follower has, by the header that an EventSource sends when it comes again.

    Raises:
        InvalidRequest: it is no number.
    """
    number = headers.get("Last-Event-ID") or "0"
    if not (number.isascii() and number.isdecimal() and len(number) < 10):
        raise InvalidRequest(f"the header Last-Event-ID is {cut(number)!r}; send the id of an event, or leave it out")
    return int(number)


def _soon(loop: asyncio.AbstractEventLoop, tell: Callable[[Job], None], job: Job) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: the server ends while a generation runs
        loop.call_soon_threadsafe(tell, job)


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)
