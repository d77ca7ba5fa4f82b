"""A job that this server has in its queue, or runs."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass, field, replace

from cache_dit_serving.errors import ClientGone, DeadlineExceeded, ServingError
from cache_dit_serving.jobs.generation import Generation
from cache_dit_serving.jobs.record import JobRecord
from cache_dit_serving.schemas.answers import ErrorDetail
from cache_dit_serving.schemas.jobs import JobState


@dataclass(eq=False)
class Job:
    """A job with its generation; for the event loop, while the pipeline's thread draws."""

    admitted: JobRecord
    """Record of the job as it came into the queue."""
    generation: Generation
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it is no longer wanted."""
    left: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once it has left this server: it has ended, or is another server's."""
    written: threading.Event = field(default_factory=threading.Event)
    """Set once it is in the database, or will never be."""
    untold: bool = False
    """Set while it runs and the database does not know."""
    taken: bool = False
    """True once another server has it."""
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _followed: bool = False

    @property
    def record(self) -> JobRecord:
        """Record of the job as it is now."""
        generation = self.generation
        admitted = replace(self.admitted, priority=generation.priority)
        if generation.started is None:
            return admitted
        return replace(
            admitted,
            history=(*admitted.history, (JobState.RUNNING, generation.started)),
            step=generation.step,
            cached_steps=generation.cached_steps,
            attempts=admitted.attempts + 1,
        )

    @property
    def followed(self) -> bool:
        """True if a follower waits for the next change."""
        return self._followed

    def next_change(self) -> asyncio.Event:
        """Return the event of the next change; each change has an event of its own.

        To be taken before the record is read: what changes until then is in the record, what changes later sets it.
        """
        self._followed = True
        return self._changed

    def tell(self) -> None:
        """Wake the followers."""
        self._followed = False
        self._changed.set()
        self._changed = asyncio.Event()


def succeeded(record: JobRecord, result: str, files: tuple[str, ...]) -> JobRecord:
    """Return a job ended with its result."""
    return replace(_ended(record, JobState.SUCCEEDED), result=result, files=files)


def failed(record: JobRecord, error: ServingError) -> JobRecord:
    """Return a job ended with an error, in the state that the error stands for; a caller that left is no error."""
    if isinstance(error, ClientGone):
        return _ended(record, JobState.CANCELLED)
    state = JobState.EXPIRED if isinstance(error, DeadlineExceeded) else JobState.FAILED
    return replace(_ended(record, state), error=ErrorDetail(**error.body("")["error"]).model_dump_json())


def queued_again(record: JobRecord) -> JobRecord:
    """Return a job whose server ended while it ran, queued from its beginning."""
    return replace(record, history=(*record.history, (JobState.QUEUED, time.time())), step=0, cached_steps=0)


def _ended(record: JobRecord, state: JobState) -> JobRecord:
    assert not record.state.final, "a job ends once"
    return replace(record, history=(*record.history, (state, time.time())))
