"""What befalls a job, as its followers are told of it: server-sent events, https://html.spec.whatwg.org/#sse.

An event's number follows from what it says, so that a follower that comes again is understood by whoever knows the job.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pydantic import BaseModel

from cache_dit_serving.jobs.record import JobRecord, same_fields
from cache_dit_serving.schemas.answers import timestamp
from cache_dit_serving.schemas.jobs import EventKind, JobMoment, JobProgress, JobState

STRIDE = 10**8
"""Numbers from one state to the next: more than a job has steps."""


@dataclass(frozen=True)
class Event:
    """One event, which a follower that has seen its number does not get again."""

    number: int | None
    """From :data:`STRIDE`; None: it says what is so at the moment, and nobody who comes again would miss it."""
    kind: EventKind
    data: str
    """JSON."""
    ends: bool = False
    """Whether it is one of a job's last."""

    def encoded(self) -> bytes:
        """As a stream of `text/event-stream` has it."""
        number = "" if self.number is None else f"id: {self.number}\n"
        return f"{number}event: {self.kind}\ndata: {self.data}\n\n".encode()


def now(kind: EventKind, data: BaseModel) -> Event:
    """One that says what is so at the moment."""
    return Event(None, kind, data.model_dump_json())


def events_of(record: JobRecord, seen: int) -> list[Event]:
    """What a follower is told that has seen the event of that number: each state, and of progress the latest.

    A follower that is slower than the job misses the steps in between, and nothing is kept for it.
    """
    events: list[Event] = []
    for number, (state, at) in enumerate(record.history, 1):
        told = STRIDE * number
        if told <= seen:
            continue
        if state.final and told - 1 > seen:
            if record.result is not None:
                events.append(Event(told - 1, EventKind.RESULT, record.result, ends=True))
            if record.error is not None:
                events.append(Event(told - 1, EventKind.FAILURE, record.error, ends=True))
        events.append(Event(told, EventKind.STATE, _moment(state, at), ends=state.final))
    number = STRIDE * len(record.history) + record.step
    if record.state is JobState.RUNNING and record.step and number > seen:
        progress = _progress(*same_fields(record, JobProgress).items())
        events.append(Event(number, EventKind.PROGRESS, progress))
    return events


# Made once for all followers of a job.
@lru_cache(maxsize=256)
def _moment(state: JobState, at: float) -> str:
    return JobMoment(state=state, at=timestamp(at)).model_dump_json()


@lru_cache(maxsize=256)
def _progress(*fields: tuple[str, Any]) -> str:
    return JobProgress(**dict(fields)).model_dump_json()
