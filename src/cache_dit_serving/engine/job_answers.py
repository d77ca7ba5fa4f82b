"""What is told of a job."""

from __future__ import annotations

from cache_dit_serving.jobs.record import JobRecord
from cache_dit_serving.schemas.answers import ErrorDetail, GenerateResponse, timestamp
from cache_dit_serving.schemas.jobs import JobAnswer, JobMoment, JobState


def answer_of(record: JobRecord) -> JobAnswer:
    """A job as it is, for whoever asks."""
    queued, runs = record.state is JobState.QUEUED, record.state is JobState.RUNNING
    return JobAnswer(
        id=record.id,
        state=record.state,
        history=[JobMoment(state=each, at=timestamp(at)) for each, at in record.history],
        position=record.position if queued else None,
        starts_in_s=record.starts_in_s if queued else None,
        step=record.step,
        steps=record.steps,
        cached_steps=record.cached_steps,
        seconds_left=record.seconds_left if runs else None,
        outputs=[f"/jobs/{record.id}/outputs/{number}" for number in range(len(record.files))],
        result=GenerateResponse.model_validate_json(record.result) if record.result is not None else None,
        error=ErrorDetail.model_validate_json(record.error) if record.error is not None else None,
    )
