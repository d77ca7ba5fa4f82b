"""Jobs as values."""

from __future__ import annotations

from typing import Any

from cache_dit_serving.jobs.record import JobRecord
from cache_dit_serving.schemas.jobs import JobState

QUEUED, RUNNING = JobState.QUEUED, JobState.RUNNING


def record(name: str = "one", *states: JobState, **fields: Any) -> JobRecord:
    """A job that came into each state a second after the one before."""
    history = tuple((state, 1000.0 + second) for second, state in enumerate(states or (QUEUED,)))
    given: dict[str, Any] = {"id": name, "history": history, "steps": 10, "request": "{}"}
    return JobRecord(**(given | fields))
