"""The routes of jobs: a request that is answered at once, and asked about later."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import replace

from starlette.requests import Request
from starlette.responses import Response

from cache_dit_serving.api import sse
from cache_dit_serving.api.answering import answered
from cache_dit_serving.api.job_parameters import (
    RESPOND_ASYNC,
    idempotency_key,
    last_event_of,
    page_of_query,
    prefers_job,
    previews_of,
)
from cache_dit_serving.api.receive import received
from cache_dit_serving.api.request_state import state_of
from cache_dit_serving.engine.caller import ANYONE, NOBODY, Caller
from cache_dit_serving.engine.idempotency import admit_once
from cache_dit_serving.engine.job_answers import JobAnswers, answer_of, page_of
from cache_dit_serving.engine.job_desk import JobDesk
from cache_dit_serving.engine.job_events import JobEvents
from cache_dit_serving.engine.models import Models
from cache_dit_serving.errors import Unauthorized
from cache_dit_serving.jobs.events import Event, events_of
from cache_dit_serving.schemas.jobs import JobAnswer, JobsResponse
from cache_dit_serving.schemas.request import GenerateRequest, JobChange

UNSIGNED = "this address is not signed, or not any more; GET /jobs/{id} tells one that is"
RECONNECT_MS = 2000
"""Milliseconds that a follower's EventSource waits before it reconnects."""


class JobsApi:
    """/jobs, over the same worker and place of outputs as the other routes."""

    def __init__(self, models: Models, desk: JobDesk) -> None:
        engine = models.default
        self._desk = desk
        self._answers = JobAnswers(engine.settings, engine.outputs)
        self._events = JobEvents(engine, desk, self._answers)
        self._followers = sse.Followers(engine.settings.limits.max_followers)

    async def accepted(self, request: GenerateRequest, http: Request) -> Response:
        """Admit a job, and answer with its address.

        Raises:
            ServingError: InvalidRequest, KeyReused, QueueFull, NotReady, StoreUnavailable, or DeadlineExceeded where no
                speed meets its deadline.
        """
        record, known = await admit_once(self._desk, received(request, http), idempotency_key(http.headers))
        headers = {"Location": f"/jobs/{record.id}"}
        if known:
            headers["Idempotency-Replayed"] = "true"
        if prefers_job(http.headers):
            headers["Preference-Applied"] = RESPOND_ASYNC
        return answered(await self._answers.answer(record), 202, headers)

    async def list(self, query: Mapping[str, str], caller: Caller) -> JobsResponse:
        """Return a page of the jobs of a caller; of everyone's for an admin.

        Args:
            query: `state`, `limit` and `after`, each as text.

        Raises:
            InvalidRequest: one of them is not what it must be.
            StoreUnavailable: the database does not answer.
        """
        wanted = page_of_query(query)
        return page_of(await self._desk.page(replace(wanted, limit=wanted.limit + 1), caller), wanted.limit)

    async def now(self, name: str, caller: Caller) -> JobAnswer:
        """Return a job as it is now.

        Raises:
            NotFound: the caller has no such job, or not any more.
            InternalError: the URLs of its outputs cannot be signed.
            StoreUnavailable: the database does not answer.
        """
        return await self._answers.answer(await self._desk.find(name, caller))

    async def change(self, name: str, wanted: JobChange, caller: Caller) -> JobAnswer:
        """Change the priority of a job that waits.

        Raises:
            InvalidRequest: the priority is above the server's greatest.
            NotFound: the caller has no such job.
            JobNotQueued: it runs, or has ended.
            InternalError: the address of its events cannot be signed.
            StoreUnavailable: the database does not answer.
        """
        return await self._answers.answer(await self._desk.set_priority(name, wanted.priority, caller))

    async def delete(self, name: str, caller: Caller) -> JobAnswer:
        """Cancel a job that has not ended; forget one that has, and its files.

        Raises:
            NotFound: the caller has no such job.
            InternalError: its files cannot be deleted.
            StoreUnavailable: the database does not answer.
        """
        record = await self._desk.find(name, caller)
        if record.state.final:
            await self._desk.forget(record)
        else:
            record = await self._desk.cancel(name, caller)
        return answer_of(record)

    async def events(self, name: str, http: Request) -> Response:
        """Answer with the events of a job from the first that the follower does not have, as they come about.

        Raises:
            Unauthorized: neither a key came nor a valid signature.
            InvalidRequest: a parameter is not what it must be, or there are no previews.
            NotFound: there is no such job.
            StoreUnavailable: the database does not answer.
        """
        caller = await self._follower(name, http)
        seen, count = last_event_of(http.headers), previews_of(http.query_params)
        record = await self._desk.find(name, caller)
        if record.state.final and not events_of(record, seen):
            return Response(status_code=204)  # an EventSource that comes again is to stay away
        previews = self._events.previews(record.id, count, lenient=state_of(http.scope).lenient)
        if http.method == "HEAD":
            return sse.no_events()
        followed = self._events.follow(record, seen, caller, previews)
        return sse.EventStream(_encoded(followed), self._followers.one_more(caller.name))

    async def _follower(self, name: str, http: Request) -> Caller:
        """Return the caller who follows a job: the job's own where the URL is signed, and no key came with it."""
        caller = state_of(http.scope).caller
        if caller is not NOBODY:
            return caller
        if not await self._answers.signs(name, http.query_params):
            raise Unauthorized(UNSIGNED)
        return replace(ANYONE, name=(await self._desk.find(name, ANYONE)).caller, scopes=("generate",))


async def _encoded(followed: AsyncGenerator[list[Event], None]) -> AsyncIterator[bytes]:
    """Yield a job's events as a stream, with heart-beats while there are none."""
    yield sse.retry(RECONNECT_MS)
    said = time.monotonic()
    async with aclosing(followed) as looks:
        async for news in looks:
            for event in news:
                yield sse.event(event.kind, event.data, event.number)
            if news:
                said = time.monotonic()
            elif time.monotonic() - said > sse.HEART_BEAT_S:
                yield sse.heart_beat()
