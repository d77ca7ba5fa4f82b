"""What is known of a job at one moment, wherever it runs and whether it has ended: a value without references."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cache_dit_serving.schemas.jobs import JobState

Moment = tuple[JobState, float]
"""A state, and when a job came into it: seconds since the epoch."""


@dataclass(frozen=True)
class JobRecord:
    """One job."""

    id: str
    history: tuple[Moment, ...]
    """The states so far, in their order."""
    steps: int
    """Denoising steps, over all images."""
    request: str
    """What it was asked, as JSON."""
    digest: str = ""
    """Of the request and its files."""
    step: int = 0
    """Steps done."""
    cached_steps: int = 0
    """Those among them that reused blocks."""
    result: str | None = None
    """The answer of /generate as JSON."""
    error: str | None = None
    """Why there is none, as JSON."""
    files: tuple[str, ...] = ()
    """Its outputs, below the root of all."""
    key: str | None = None
    """The Idempotency-Key that it came with."""
    caller: str = ""
    """Who submitted it; empty where there are no API keys."""
    priority: int = 0
    """Greater ones run before."""
    attempts: int = 0
    """How often it was begun."""
    position: int | None = None
    """While it is queued: 1 for the next of its server."""
    starts_in_s: float | None = None
    """While it is queued: an estimate."""
    seconds_left: float | None = None
    """While it runs: an estimate."""

    @property
    def asked(self) -> dict[str, Any]:
        """The fields of its request."""
        fields: dict[str, Any] = self._read["request"]
        return fields

    @property
    def base_url(self) -> str:
        """Of the server, as its client called it."""
        return str(self._read["base_url"])

    @cached_property
    def _read(self) -> dict[str, Any]:
        read: dict[str, Any] = json.loads(self.request)
        return read

    @property
    def state(self) -> JobState:
        return self.history[-1][0]
