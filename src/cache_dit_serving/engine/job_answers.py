"""What is told of a job."""

from __future__ import annotations

from dataclasses import replace

from cache_dit_serving.jobs.record import JobRecord, same_fields
from cache_dit_serving.schemas.answers import ErrorDetail, GenerateResponse, timestamp
from cache_dit_serving.schemas.jobs import JobAnswer, JobMoment, JobState


def answer_of(record: JobRecord) -> JobAnswer:
    """Return the answer about a job as it is."""
    # A database may still have the estimates of the state before.
    if record.state is not JobState.QUEUED:
        record = replace(record, position=None, starts_in_s=None)
    if record.state is not JobState.RUNNING:
        record = replace(record, seconds_left=None)
    values = same_fields(record, JobAnswer) | {
        "state": record.state,
        "history": [JobMoment(state=each, at=timestamp(at)) for each, at in record.history],
        "outputs": [f"/jobs/{record.id}/outputs/{number}" for number in range(len(record.files))],
        "result": GenerateResponse.model_validate_json(record.result) if record.result is not None else None,
        "error": ErrorDetail.model_validate_json(record.error) if record.error is not None else None,
    }
    return JobAnswer(**values)
