"""The routes of jobs: a request that is answered at once, and asked about later."""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import hashlib
import logging
import re
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response

from cache_dit_serving.api import sse
from cache_dit_serving.api.answering import answered
from cache_dit_serving.api.receive import received
from cache_dit_serving.engine.caller import ANYONE, NOBODY, Caller
from cache_dit_serving.engine.engine import Engine
from cache_dit_serving.engine.intake import Intake
from cache_dit_serving.engine.job_answers import answer_of
from cache_dit_serving.engine.job_desk import JobDesk
from cache_dit_serving.engine.previews import PARAM, AskedPreviews, FollowedPreviews, possible
from cache_dit_serving.errors import (
    InternalError,
    InvalidRequest,
    NotFound,
    StoreUnavailable,
    Unauthorized,
)
from cache_dit_serving.findings import cut
from cache_dit_serving.jobs.events import events_of, now
from cache_dit_serving.jobs.record import JobRecord
from cache_dit_serving.jobs.store.store import KeyTaken, Page
from cache_dit_serving.media.outputs import Stored
from cache_dit_serving.media.signing import Signer
from cache_dit_serving.schemas.answers import GenerateResponse
from cache_dit_serving.schemas.jobs import (
    Draining,
    EventKind,
    JobAnswer,
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
EVENTS_S = 300
"""Seconds for which the signed route of a job's events is valid."""
UNSIGNED = "this address is not signed, or not any more; GET /jobs/{id} tells one that is"
RECONNECT_MS = 2000
"""For a follower's EventSource to wait before it comes again."""


class JobsApi:
    """Jobs, over the same worker and place of outputs as the other routes."""

    def __init__(self, engine: Engine, desk: JobDesk) -> None:
        self._outputs = engine.outputs
        self._public_url = (engine.settings.outputs.public_url or "").rstrip("/")
        self._engine = engine
        self._worker = engine.worker
        self._desk = desk
        settings = engine.settings
        self._signer = Signer(settings.outputs.root, EVENTS_S) if settings.server.has_keys else None
        self.followers = sse.Followers(engine.settings.limits.max_followers)

    async def accepted(self, request: GenerateRequest, http: Request) -> Response:
        """Admit a job, and answer with where to ask about it.

        Raises:
            ServingError: as :meth:`admitted`.
        """
        record, known = await self.admitted(received(request, http), http.headers)
        headers = {"Location": f"/jobs/{record.id}"}
        if known:
            headers["Idempotency-Replayed"] = "true"
        if prefers_job(http.headers):
            headers["Preference-Applied"] = RESPOND_ASYNC
        return answered(await self._answer(record), 202, headers)

    async def admitted(self, intake: Intake, headers: Headers, prefix: str = "") -> tuple[JobRecord, bool]:
        """A job for a request, and whether it was there before.

        A request whose Idempotency-Key came with the same request before gets the job of that one.

        Args:
            prefix: of its id.

        Raises:
            ServingError: InvalidRequest, KeyReused, QueueFull, NotReady, StoreUnavailable, or DeadlineExceeded where no
                speed meets its deadline.
        """
        key, digest = _idempotency_key(headers, intake.caller), _digest(intake)
        if key is not None and (record := await self._desk.of_key(key, digest)) is not None:
            return record, True
        try:
            return await self._desk.admit(intake, key, digest, prefix), False
        except KeyTaken:  # by one that came meanwhile
            record = await self._desk.of_key(key, digest) if key else None
            if record is None:
                raise InternalError from None
            return record, True

    async def list(self, query: Mapping[str, str], caller: Caller) -> JobsResponse:
        """A page of the jobs of a caller; of everyone's for an admin.

        Args:
            query: `state`, `limit` and `after`, each as text.

        Raises:
            InvalidRequest: one of them is not what it must be.
            StoreUnavailable: the database does not answer.
        """
        for name in query:
            if name not in ("state", "limit", "after"):
                raise InvalidRequest(f"{cut(name)} is no parameter; there are state, limit and after", param=cut(name))
        states = [state.value for state in JobState]
        if (state := query.get("state")) not in (None, *states):
            raise InvalidRequest(f"state is {cut(state or '')!r}; it is one of {', '.join(states)}", param="state")
        most = limit_of(query)
        page = await self.page(Page(most + 1, query.get("after"), JobState(state) if state else None), caller)
        answers = [answer_of(record).model_copy(update={"result": None}) for record in page[:most]]
        return JobsResponse(jobs=answers, next=answers[-1].id if len(page) > most else None)

    async def page(self, wanted: Page, caller: Caller) -> builtins.list[JobRecord]:
        """Jobs of a caller, those of everyone for an admin.

        Raises:
            InvalidRequest: there is no job to come after.
            StoreUnavailable: the database does not answer.
        """
        if (page := await self._desk.page(wanted, caller)) is None:
            raise InvalidRequest("after is the id of no job that is kept; begin without it", param="after")
        return page

    async def find(self, name: str, caller: Caller) -> JobRecord:
        """A job as it is now.

        Raises:
            NotFound: the caller has no such job, or not any more.
            StoreUnavailable: the database does not answer.
        """
        return await self._desk.find(name, caller)

    async def now(self, name: str, caller: Caller) -> JobAnswer:
        """What is told of a job as it is now.

        Raises:
            NotFound: the caller has no such job, or not any more.
            InternalError: the URLs of its outputs cannot be signed.
            StoreUnavailable: the database does not answer.
        """
        return await self._answer(await self.find(name, caller))

    async def output(self, name: str, number: str, caller: Caller) -> Stored:
        """One output of a job.

        Args:
            number: from 0, as text.

        Raises:
            NotFound: there is none.
            InternalError: it cannot be told.
            StoreUnavailable: the database does not answer.
        """
        record = await self.find(name, caller)
        files = record.files
        if not (number.isascii() and number.isdecimal() and int(number[:9]) < len(files)):
            have = f"{len(files)} output(s), from 0" if files else f"no outputs: it is {record.state}"
            raise NotFound(f"there is no such output; this job has {have}")
        return await asyncio.to_thread(self._outputs.find, files[int(number)])

    async def events(self, record: JobRecord, seen: int, caller: Caller, asked: AskedPreviews) -> AsyncIterator[bytes]:
        """A job's events to its last, as server-sent events.

        Args:
            record: the job as it is.
            seen: number of the last event that the follower has.
            asked: previews that it is to get.
        """
        previews = FollowedPreviews(asked)
        try:
            async for event in self._events(record, seen, caller, previews):
                yield event
        finally:
            previews.stop()

    async def _events(
        self, record: JobRecord, seen: int, caller: Caller, previews: FollowedPreviews
    ) -> AsyncIterator[bytes]:
        yield sse.retry(RECONNECT_MS)
        said = time.monotonic()
        position: int | None = None
        draining = False
        while True:
            job = self._desk.live(record.id)
            previews.look(job.generation if job is not None else None)
            job_changed = job.changed if job is not None else self._desk.closing
            with contextlib.suppress(StoreUnavailable, InternalError):
                try:
                    record = await self._signed(await self.find(record.id, caller))
                except NotFound:
                    return  # it was forgotten
            told = events_of(record, seen)
            seen = told[-1].number or seen if told else seen
            if record.state is JobState.QUEUED and record.position not in (None, position):
                position = record.position
                told.append(
                    now(EventKind.POSITION, JobPosition(position=record.position, starts_in_s=record.starts_in_s))
                )
            # Before the job's last events, after the others.
            end = next((place for place, event in enumerate(told) if event.ends), len(told))
            told[end:end] = previews.told(record)
            if self._worker.state == "draining" and not draining and not record.state.final:
                draining = True
                told.append(now(EventKind.DRAINING, Draining(message="the server is shutting down; what runs ends")))
            for event in told:
                yield sse.event(event.kind, event.data, event.number)
            if not told and time.monotonic() - said > sse.HEART_BEAT_S:
                yield sse.heart_beat()
            elif told:
                said = time.monotonic()
            if record.state.final or (draining and job is None):
                return
            if job is None:
                await self._desk.wait_for_progress(record, TICK_S)
                continue
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(job_changed.wait(), TICK_S)

    def previews(self, name: str, count: int | None, *, lenient: bool) -> AskedPreviews:
        """Previews of a job that a follower is to get.

        Args:
            count: how many it wants; None: it does not say.
            lenient: whether what cannot be honoured is ignored and reported.

        Raises:
            InvalidRequest: there are none, which is not to be ignored.
        """
        if count is None and not self._engine.settings.previews.every:
            count = 0
        job = self._desk.live(name)
        why_none = self._engine.no_previews(job.generation if job is not None else None)
        return possible(count, PARAM, why_none, lenient=lenient)

    async def delete(self, name: str, caller: Caller) -> JobAnswer:
        """Cancel a job that has not ended; forget one that has, and its files.

        Raises:
            NotFound: the caller has no such job.
            InternalError: its files cannot be deleted.
            StoreUnavailable: the database does not answer.
        """
        record = await self.find(name, caller)
        if record.state.final:
            await self._desk.forget(record)
        else:
            record = await self._desk.cancel(name, caller)
        return answer_of(record)

    async def follower(self, name: str, query: Mapping[str, str], caller: Caller) -> Caller:
        """Return the caller who follows a job: the job's own where the URL is signed, and no key came with it.

        Raises:
            Unauthorized: neither a key came nor a valid signature.
            NotFound: there is no such job.
            StoreUnavailable: the database does not answer.
        """
        if caller is not NOBODY:
            return caller
        if self._signer is None or not await asyncio.to_thread(self._signer.holds, _events_of(name), query):
            raise Unauthorized(UNSIGNED)
        return replace(ANYONE, name=(await self.find(name, ANYONE)).caller, scopes=("generate",))

    async def _answer(self, record: JobRecord) -> JobAnswer:
        """A job as its own routes tell it."""
        events = _events_of(record.id)
        if self._signer is not None:
            try:
                events += f"?{await asyncio.to_thread(self._signer.query, events)}"
            except OSError as error:
                logger.exception("the route of a job's events cannot be signed")
                raise InternalError from error
        return answer_of(await self._signed(record)).model_copy(update={"events": events})

    async def _signed(self, record: JobRecord) -> JobRecord:
        """A job whose result has URLs that are valid from now on, where they expire."""
        if record.result is None or not self._outputs.expiring or record.asked.get("output_format") == "path":
            return record
        base_url = self._public_url or record.base_url
        addresses = await asyncio.to_thread(
            lambda: [self._outputs.address(file, "url", base_url) for file in record.files]
        )
        result = GenerateResponse.model_validate_json(record.result)
        result.images = addresses if result.images is not None else None
        result.video = addresses[0] if result.video is not None else None
        result.audio = addresses[0] if result.audio is not None else None
        return replace(record, result=result.model_dump_json())


def _events_of(name: str) -> str:
    """The route of a job's events, which is the name that is signed."""
    return f"/jobs/{name}/events"


def limit_of(query: Mapping[str, str]) -> int:
    """How many jobs a page is to have.

    Raises:
        InvalidRequest: `limit` is none of the numbers that it may be.
    """
    limit = query.get("limit", str(PAGE))
    if not (limit.isascii() and limit.isdecimal() and 1 <= int(limit[:9]) <= MOST_ON_A_PAGE):
        raise InvalidRequest(f"limit is {cut(limit)!r}; send 1 to {MOST_ON_A_PAGE}", param="limit")
    return int(limit)


def prefers_job(headers: Headers) -> bool:
    """Whether a request wants to be a job, RFC 7240."""
    preferences = ",".join(headers.getlist("Prefer")).lower().split(",")
    return RESPOND_ASYNC in (preference.partition(";")[0].strip() for preference in preferences)


def last_event_of(headers: Mapping[str, str]) -> int:
    """The number of the last event that a follower has, by the header that an EventSource sends when it comes again.

    Raises:
        InvalidRequest: it is no number.
    """
    number = headers.get("Last-Event-ID") or "0"
    if not (number.isascii() and number.isdecimal() and len(number) < 15):
        raise InvalidRequest(f"the header Last-Event-ID is {cut(number)!r}; send the id of an event, or leave it out")
    return int(number)


def _idempotency_key(headers: Headers, caller: Caller) -> str | None:
    """That of a request, apart from those of other callers."""
    key = headers.get("Idempotency-Key")
    if key is not None and not KEY.fullmatch(key):
        raise InvalidRequest(f"the header Idempotency-Key is {cut(key)!r}; send 1 to 255 letters, digits or signs")
    return key and f"{caller.name} {key}" if caller.name else key


def _digest(intake: Intake) -> str:
    """Of a request and the files that came with it."""
    digest = hashlib.sha256(intake.request.model_dump_json(exclude_unset=True).encode())
    for upload in intake.uploads:
        content = upload.encode() if isinstance(upload, str) else upload
        digest.update(len(content).to_bytes(8) + content)
    return digest.hexdigest()
