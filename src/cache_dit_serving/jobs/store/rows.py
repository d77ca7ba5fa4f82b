"""Jobs as rows of their table: a column for each field of :class:`JobRecord`, by its name."""

from __future__ import annotations

import json
from typing import Any

from cache_dit_serving.jobs.record import FIELDS, JobRecord
from cache_dit_serving.jobs.store.tables import JobRow
from cache_dit_serving.schemas.jobs import JobState


def columns_of(record: JobRecord) -> dict[str, Any]:
    """Return the columns of a job's row."""
    return {name: getattr(record, name) for name in FIELDS} | {
        "history": json.dumps(record.history),
        "files": json.dumps(record.files),
        "state": record.state,
        "ended": record.history[-1][1] if record.state.final else None,
    }


def record_of(row: JobRow) -> JobRecord:
    """Return the job of a row."""
    values = {name: getattr(row, name) for name in FIELDS} | {
        "history": tuple((JobState(state), at) for state, at in json.loads(row.history)),
        "files": tuple(json.loads(row.files)),
    }
    return JobRecord(**values)
