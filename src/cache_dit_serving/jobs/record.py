"""A job at one moment, wherever it runs and whether it has ended: a value without references.

One more field of a job is written here, as a column of `store/tables.py` (with a migration), and in the answer that
shows it (`schemas/jobs.py`): all others go by the fields' names.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

from pydantic import BaseModel

from cache_dit_serving.jobs.kept_request import KeptRequest
from cache_dit_serving.schemas.jobs import JobState

Moment = tuple[JobState, float]
"""A state, and the time at which a job came into it: seconds since the epoch."""
AS_PROGRESS = {"progress": True}
"""Mark of a field that a server writes anew each second while it has the job."""


@dataclass(frozen=True)
class JobRecord:
    """One job."""

    id: str
    history: tuple[Moment, ...]
    """The states so far, in their order."""
    steps: int
    """Denoising steps, over all images."""
    request: str
    """Its request as JSON, in the layout of `jobs/kept_request.py`."""
    digest: str = ""
    """Digest of the request and its files."""
    step: int = field(default=0, metadata=AS_PROGRESS)
    """Denoising steps done."""
    cached_steps: int = field(default=0, metadata=AS_PROGRESS)
    """Steps among those done that reused blocks."""
    result: str | None = None
    """The answer of /generate as JSON."""
    error: str | None = None
    """The reason for which there is no result, as JSON."""
    files: tuple[str, ...] = ()
    """Its outputs, named from the root of all."""
    key: str | None = None
    """The Idempotency-Key that it came with."""
    caller: str = ""
    """Name of the key that submitted it; empty where there are no API keys."""
    priority: int = 0
    """Greater ones run before. Once a job is written, `JobStore.set_priority` alone changes it."""
    attempts: int = 0
    """Number of times that it was begun."""
    position: int | None = field(default=None, metadata=AS_PROGRESS)
    """Position in its server's queue, 1 for the next; None unless it is queued."""
    starts_in_s: float | None = field(default=None, metadata=AS_PROGRESS)
    """Estimated seconds until it starts; None unless it is queued."""
    seconds_left: float | None = field(default=None, metadata=AS_PROGRESS)
    """Estimated seconds until it ends; None unless it runs."""

    @property
    def asked(self) -> dict[str, Any]:
        """Fields of its request."""
        return self._kept.request

    @property
    def base_url(self) -> str:
        """URL of the server, as its client called it."""
        return self._kept.base_url

    @cached_property
    def _kept(self) -> KeptRequest:
        return KeptRequest.model_validate_json(self.request)

    @property
    def state(self) -> JobState:
        """Latest state."""
        return self.history[-1][0]


FIELDS = tuple(each.name for each in fields(JobRecord))
PROGRESS = tuple(each.name for each in fields(JobRecord) if each.metadata == AS_PROGRESS)


def same_fields(record: JobRecord, answer: type[BaseModel]) -> dict[str, Any]:
    """Return the values of the fields that a record and an answer have by the same name."""
    return {name: getattr(record, name) for name in FIELDS if name in answer.model_fields}
