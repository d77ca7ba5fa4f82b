"""Answers about jobs."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, Field

from cache_dit_serving.schemas.answers import Answer, ErrorDetail, GenerateResponse


class JobState(StrEnum):
    """Where a job stands. It is queued, then running, and ends in one of the others."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def final(self) -> bool:
        """Whether nothing follows."""
        return self not in (JobState.QUEUED, JobState.RUNNING)


class EventKind(StrEnum):
    """What an event of a job is about."""

    STATE = "state"
    PROGRESS = "progress"
    PREVIEW = "preview"
    WARNING = "warning"
    POSITION = "position"
    DRAINING = "draining"
    RESULT = "result"
    FAILURE = "failure"
    """Not `error`: a browser's EventSource gives that name to a lost connection."""

    @property
    def kept(self) -> bool:
        """Whether a later one of its kind leaves it true."""
        return self not in (EventKind.PROGRESS, EventKind.PREVIEW)


class JobMoment(BaseModel):
    """When a job came into a state."""

    state: JobState
    at: str = Field(description="ISO 8601, UTC, ms.")


class JobProgress(Answer):
    """How far a job is."""

    step: int = Field(0, description="Denoising steps done, over all images.")
    steps: int
    cached_steps: int = Field(0, description="Steps among those done that reused blocks.")
    seconds_left: float | None = Field(None, description="While it runs: an estimate, by what others took.")


class JobPreview(Answer):
    """What a job is drawing, as it was after a step."""

    step: int = Field(description="Denoising steps done then, over all images.")
    steps: int
    image: str = Field(description="base64.")
    format: Literal["webp"] = "webp"


class JobPosition(Answer):
    """Where a job that is queued stands."""

    position: int = Field(description="1 for the next.")
    starts_in_s: float | None = Field(None, description="An estimate, by what others took.")


class Draining(Answer):
    """The server is shutting down; what runs ends before."""

    message: str


class JobAnswer(Answer):
    """One job."""

    id: str
    state: JobState
    history: list[JobMoment] = Field(description="The states so far; the last one is `state`.")
    position: int | None = Field(None, description="While it is queued: 1 for the next.")
    starts_in_s: float | None = Field(None, description="While it is queued: an estimate, by what others took.")
    step: int = Field(0, description="Denoising steps done, over all images.")
    steps: int
    cached_steps: int = Field(0, description="Steps among those done that reused blocks.")
    seconds_left: float | None = Field(None, description="While it runs: an estimate, by what others took.")
    events: str | None = Field(
        None,
        description="Route of its events. Where the server has keys it needs none for five minutes, for a browser's "
        "EventSource.",
    )
    outputs: list[str] = Field([], description="Routes of its files, once it has succeeded.")
    result: GenerateResponse | None = Field(None, description="As /generate answers, once it has succeeded.")
    error: ErrorDetail | None = Field(None, description="Why it has no result.")


class JobsResponse(Answer):
    """A page of jobs, the latest first, without their results."""

    jobs: list[JobAnswer]
    next: str | None = Field(None, description="`after` of the next page; left out: this is the last.")
