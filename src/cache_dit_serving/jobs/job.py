"""A generation that nobody holds a connection open for."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from cache_dit_serving.errors import ClientGone, DeadlineExceeded, ServingError
from cache_dit_serving.jobs.events import Events
from cache_dit_serving.jobs.generation import Generation
from cache_dit_serving.schemas.answers import ErrorDetail, GenerateResponse, timestamp
from cache_dit_serving.schemas.jobs import EventKind, JobMoment, JobProgress, JobState


class Progress(NamedTuple):
    """How far a generation is, or was when its job ended."""

    submitted: float
    """Seconds since the epoch."""
    started: float | None
    step: int
    steps: int
    cached_steps: int


@dataclass(eq=False)
class Job:
    """Written by the event loop alone; of its generation, the pipeline's thread writes the progress."""

    id: str
    generation: Generation | None
    """None once it has ended: a job is kept for long, and its pictures would stay in memory."""
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it is no longer wanted."""
    done: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once its state is final."""
    result: GenerateResponse | None = None
    files: tuple[Path, ...] = ()
    error: ServingError | None = None
    key: str | None = None
    """The Idempotency-Key that it was submitted with."""
    events: Events = field(default_factory=Events)
    """What its followers are told."""
    _last: Progress | None = None
    _ended: tuple[JobState, float] | None = None
    _told: tuple[bool, int] = (False, 0)
    """Whether followers know that it runs, and at which step."""

    def __post_init__(self) -> None:
        self.events.add(EventKind.STATE, _moment(*self.history[0]))

    @property
    def progress(self) -> Progress:
        """As it is now."""
        if self.generation is None:
            assert self._last is not None
            return self._last
        generation = self.generation
        return Progress(
            generation.submitted, generation.started, generation.step, generation.steps, generation.cached_steps
        )

    @property
    def state(self) -> JobState:
        return self.history[-1][0]

    @property
    def history(self) -> list[tuple[JobState, float]]:
        """Each state so far, and when it came into it: seconds since the epoch."""
        progress = self.progress
        moments = [(JobState.QUEUED, progress.submitted)]
        if progress.started is not None:
            moments.append((JobState.RUNNING, progress.started))
        if self._ended is not None:
            moments.append(self._ended)
        return moments

    def tell(self, seconds_left: float | None = None) -> None:
        """Tell followers what has become of it since the last time; nothing once it has ended."""
        if self._ended is not None:
            return
        progress, (runs, step) = self.progress, self._told
        if progress.started is None:
            return
        self._told = (True, progress.step)
        if not runs:
            self.events.add(EventKind.STATE, _moment(JobState.RUNNING, progress.started))
        if progress.step != step:
            told = JobProgress(
                step=progress.step,
                steps=progress.steps,
                cached_steps=progress.cached_steps,
                seconds_left=None if seconds_left is None else round(seconds_left, 1),
            )
            self.events.add(EventKind.PROGRESS, told)

    def succeed(self, result: GenerateResponse, files: tuple[Path, ...]) -> None:
        """End it with its result."""
        self.result, self.files = result, files
        self._end(JobState.SUCCEEDED)

    def fail(self, error: ServingError) -> None:
        """End it with an error, which says in which state; that nobody wants it any more is none."""
        if isinstance(error, ClientGone):
            self._end(JobState.CANCELLED)
            return
        self.error = error.with_traceback(None)
        self._end(JobState.EXPIRED if isinstance(error, DeadlineExceeded) else JobState.FAILED)

    def _end(self, state: JobState) -> None:
        assert self._ended is None, "a job ends once"
        self.tell()
        self._last, self.generation = self.progress, None
        self._ended = (state, time.time())
        if self.result is not None:
            self.events.add(EventKind.RESULT, self.result)
        if self.error is not None:
            self.events.add(EventKind.FAILURE, ErrorDetail(**self.error.body("")["error"]))
        self.events.add(EventKind.STATE, _moment(*self._ended), final=True)
        self.done.set()


def _moment(state: JobState, at: float) -> JobMoment:
    return JobMoment(state=state, at=timestamp(at))
