"""Answers about jobs."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, Field

from cache_dit_serving.schemas.answers import Answer, ErrorDetail, GenerateResponse


class JobState(StrEnum):
    """State of a job. A job starts queued, may run, and ends in one of the other states."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def final(self) -> bool:
        """True if no other state follows."""
        return self not in (JobState.QUEUED, JobState.RUNNING)


class EventKind(StrEnum):
    """Kind of a job's event."""

    STATE = "state"
    PROGRESS = "progress"
    PREVIEW = "preview"
    WARNING = "warning"
    POSITION = "position"
    DRAINING = "draining"
    RESULT = "result"
    FAILURE = "failure"
    """Failure of the job. Not named `error`, because a browser's EventSource uses that name for a lost connection."""

    @property
    def kept(self) -> bool:
        """True if a later event of this kind does not replace it, so that it is stored."""
        return self not in (EventKind.PROGRESS, EventKind.PREVIEW)


class JobMoment(BaseModel):
    """A state of a job, and the time it was entered."""

    state: JobState
    at: str = Field(description="ISO 8601, UTC, ms.")


class JobProgress(Answer):
    """Progress of a job."""

    step: int = Field(0, description="Denoising steps done, over all images.")
    steps: int
    cached_steps: int = Field(0, description="Steps among those done that reused blocks.")
    seconds_left: float | None = Field(
        None, description="Estimated seconds left while it runs, from the times of earlier jobs."
    )


class JobPreview(Answer):
    """Preview of a job's output after a denoising step."""

    step: int = Field(description="Denoising steps done at that time, over all images.")
    steps: int
    image: str = Field(description="The preview, base64.")
    format: Literal["webp"] = "webp"


class JobPosition(Answer):
    """Position of a queued job."""

    position: int = Field(description="Position in the queue; 1 runs next.")
    starts_in_s: float | None = Field(
        None, description="Estimated seconds until it starts, from the times of earlier jobs."
    )


class Draining(Answer):
    """Notice that the server is shutting down. Running jobs finish first."""

    message: str


class JobAnswer(Answer):
    """One job."""

    id: str
    state: JobState
    history: list[JobMoment] = Field(description="States so far, oldest first; the last one is `state`.")
    model: str | None = Field(None, description="Name of the model that draws it; absent on a server of one.")
    priority: int = Field(0, description="Priority with which it waits; a higher one runs first.")
    position: int | None = Field(None, description="Position in the queue while queued; 1 runs next.")
    starts_in_s: float | None = Field(
        None, description="Estimated seconds until it starts while queued, from the times of earlier jobs."
    )
    step: int = Field(0, description="Denoising steps done, over all images.")
    steps: int
    cached_steps: int = Field(0, description="Steps among those done that reused blocks.")
    seconds_left: float | None = Field(
        None, description="Estimated seconds left while it runs, from the times of earlier jobs."
    )
    events: str | None = Field(
        None,
        description="Route of its events. On a server with API keys, the route works without a key for five minutes, "
        "because a browser's EventSource cannot send one.",
    )
    outputs: list[str] = Field([], description="Routes of its files once it has succeeded.")
    result: GenerateResponse | None = Field(None, description="Answer of /generate once it has succeeded.")
    error: ErrorDetail | None = Field(None, description="Reason why it has no result.")


class JobsResponse(Answer):
    """A page of jobs, latest first, without their results."""

    jobs: list[JobAnswer]
    next: str | None = Field(None, description="Value of `after` for the next page; absent on the last page.")
