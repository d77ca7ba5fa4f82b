"""Jobs as rows of their table."""

from __future__ import annotations

import json
from typing import Any

from cache_dit_serving.jobs.record import JobRecord
from cache_dit_serving.jobs.store.tables import JobRow
from cache_dit_serving.schemas.jobs import JobState


def columns_of(record: JobRecord) -> dict[str, Any]:
    """A job as columns of its row."""
    return {
        "id": record.id,
        "key": record.key,
        "digest": record.digest,
        "request": record.request,
        "state": record.state,
        "history": json.dumps(record.history),
        "ended": record.history[-1][1] if record.state.final else None,
        "step": record.step,
        "steps": record.steps,
        "cached_steps": record.cached_steps,
        "result": record.result,
        "error": record.error,
        "files": json.dumps(record.files),
        "caller": record.caller,
        "priority": record.priority,
        "attempts": record.attempts,
        "position": record.position,
        "starts_in_s": record.starts_in_s,
        "seconds_left": record.seconds_left,
    }


def record_of(row: JobRow) -> JobRecord:
    """A job by its row."""
    return JobRecord(
        id=row.id,
        history=tuple((JobState(state), at) for state, at in json.loads(row.history)),
        steps=row.steps,
        request=row.request,
        digest=row.digest,
        step=row.step,
        cached_steps=row.cached_steps,
        result=row.result,
        error=row.error,
        files=tuple(json.loads(row.files)),
        key=row.key,
        caller=row.caller,
        priority=row.priority,
        attempts=row.attempts,
        position=row.position,
        starts_in_s=row.starts_in_s,
        seconds_left=row.seconds_left,
    )
