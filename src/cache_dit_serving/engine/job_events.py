"""Events of a job as one follower gets them, from the first that it has not seen to the job's last."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from cache_dit_serving.engine.caller import Caller
from cache_dit_serving.engine.engine import Engine
from cache_dit_serving.engine.job_answers import JobAnswers
from cache_dit_serving.engine.job_desk import JobDesk
from cache_dit_serving.engine.previews import PARAM, AskedPreviews, FollowedPreviews, possible
from cache_dit_serving.errors import InternalError, NotFound, StoreUnavailable
from cache_dit_serving.jobs.events import Event, events_of, now
from cache_dit_serving.jobs.record import JobRecord
from cache_dit_serving.schemas.jobs import Draining, EventKind, JobPosition, JobState

TICK_S = 1.0
"""Poll interval of an idle job, seconds."""


class JobEvents:
    """The jobs of a desk, for followers."""

    def __init__(self, engine: Engine, desk: JobDesk, answers: JobAnswers) -> None:
        self._engine = engine
        self._worker = engine.worker
        self._desk = desk
        self._answers = answers

    def previews(self, name: str, count: int | None, *, lenient: bool) -> AskedPreviews:
        """Return the previews of a job that a follower is to get.

        Args:
            count: number that it wants; None: it does not say.
            lenient: ignore and report previews that cannot be made.

        Raises:
            InvalidRequest: there are none, and `lenient` is not set.
        """
        if count is None and not self._engine.settings.previews.every:
            count = 0
        job = self._desk.live(name)
        why_none = self._engine.no_previews(job.generation if job is not None else None)
        return possible(count, PARAM, why_none, lenient=lenient)

    async def follow(
        self, record: JobRecord, seen: int, caller: Caller, asked: AskedPreviews
    ) -> AsyncGenerator[list[Event], None]:
        """Yield the new events of a job at each change, and each :data:`TICK_S` without one, until its last.

        Args:
            record: the job as it is.
            seen: number of the last event that the follower has.
            asked: previews that it is to get.
        """
        previews = FollowedPreviews(asked)
        news = _News(seen, previews)
        try:
            while True:
                job = self._desk.live(record.id)
                previews.look(job.generation if job is not None else None)
                changed = job.next_change() if job is not None else None
                with contextlib.suppress(StoreUnavailable, InternalError):
                    try:
                        record = await self._answers.with_valid_urls(await self._desk.find(record.id, caller))
                    except NotFound:
                        return  # it was forgotten
                yield news.of(record, draining=self._worker.state == "draining")
                if record.state.final or (news.draining and changed is None):
                    return
                if changed is None:
                    await self._desk.wait_for_progress(record, TICK_S)
                    continue
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), TICK_S)
        finally:
            previews.stop()


class _News:
    """Events of a job that one follower has not had."""

    def __init__(self, seen: int, previews: FollowedPreviews) -> None:
        self._seen = seen
        self._position: int | None = None
        self._previews = previews
        self.draining = False
        """Set once the follower knows that the server drains."""

    def of(self, record: JobRecord, *, draining: bool) -> list[Event]:
        """Return the events that are new at this look, in their order."""
        events = events_of(record, self._seen)
        self._seen = events[-1].number or self._seen if events else self._seen
        if record.state is JobState.QUEUED and record.position not in (None, self._position):
            self._position = record.position
            events.append(
                now(EventKind.POSITION, JobPosition(position=record.position, starts_in_s=record.starts_in_s))
            )
        # Before the job's last events, after the others.
        end = next((place for place, event in enumerate(events) if event.ends), len(events))
        events[end:end] = self._previews.events(record)
        if draining and not self.draining and not record.state.final:
            self.draining = True
            events.append(now(EventKind.DRAINING, Draining(message="the server is shutting down; what runs ends")))
        return events
