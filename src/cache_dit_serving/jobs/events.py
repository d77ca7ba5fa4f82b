"""Events of a job for its followers: server-sent events, https://html.spec.whatwg.org/#sse.

An event's number follows from its content, so any server that knows the job understands a follower that comes again.
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
"""Distance of the numbers of two states: more than a job has steps."""


@dataclass(frozen=True)
class Event:
    """One event. A follower that has seen its number does not get it again."""

    number: int | None
    """Number, from :data:`STRIDE`; None for an event that holds at the moment only, which is not sent again."""
    kind: EventKind
    data: str
    """JSON of the event."""
    ends: bool = False
    """True for the last events of a job."""


def now(kind: EventKind, data: BaseModel) -> Event:
    """Return an event that holds at the moment only."""
    return Event(None, kind, data.model_dump_json())


def events_of(record: JobRecord, seen: int) -> list[Event]:
    """Return the events that a follower has not had: each state, and the latest progress.

    A follower that is slower than the job misses the steps in between; no event is kept for it.

    Args:
        seen: number of the latest event that it has.
    """
    events: list[Event] = []
    for number, (state, at) in enumerate(record.history, 1):
        event_number = STRIDE * number
        if event_number <= seen:
            continue
        if state.final and event_number - 1 > seen:
            if record.result is not None:
                events.append(Event(event_number - 1, EventKind.RESULT, record.result, ends=True))
            if record.error is not None:
                events.append(Event(event_number - 1, EventKind.FAILURE, record.error, ends=True))
        events.append(Event(event_number, EventKind.STATE, _moment(state, at), ends=state.final))
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
