"""Previews as clients ask for them, and among a job's events."""

from __future__ import annotations

from dataclasses import dataclass

from cache_dit_serving.errors import InvalidRequest
from cache_dit_serving.jobs.events import Event, now
from cache_dit_serving.jobs.generation import Generation
from cache_dit_serving.jobs.record import JobRecord
from cache_dit_serving.jobs.wanted_previews import WantedPreviews
from cache_dit_serving.schemas.answers import RequestWarning
from cache_dit_serving.schemas.jobs import EventKind, JobPreview, JobState

PARAM = "previews"
"""Query parameter by which a follower of a job asks for previews."""
ELSEWHERE = "another worker of this server draws this job, and it alone shows previews; connect again to reach it"


@dataclass(frozen=True)
class AskedPreviews:
    """Previews that a client is to get."""

    count: int | None
    """Number of previews; None: as many as the server makes by itself."""
    warnings: tuple[RequestWarning, ...] = ()
    """Reasons for which it gets none."""


def possible(count: int | None, param: str, why_none: str | None, *, lenient: bool) -> AskedPreviews:
    """Return as many previews as a client asks for; none and a warning where there are none and `lenient` is set.

    Args:
        param: name of the parameter or field that asks for them.
        why_none: reason for which there are none; None where there are.
        lenient: ignore and report a number that cannot be honoured.

    Raises:
        InvalidRequest: there are none, and `lenient` is not set.
    """
    if not count or why_none is None:
        return AskedPreviews(count)
    if not lenient:
        raise InvalidRequest(f"{param}: {why_none}; leave {param} out", param=param, code="unsupported_field")
    warning = RequestWarning(param=param, code="unsupported_field", message=f"{why_none}; {param} was ignored")
    return AskedPreviews(0, (warning,))


class FollowedPreviews:
    """The previews of a job, as one of its followers gets them."""

    def __init__(self, asked: AskedPreviews) -> None:
        self._count = asked.count
        self._warnings = list(asked.warnings)
        self._generation: Generation | None = None
        self._wanted: WantedPreviews | None = None
        self._shown: JobPreview | None = None

    def look(self, generation: Generation | None) -> None:
        """Say that they are wanted, as long as the job waits or runs.

        Args:
            generation: the job's; None where this worker has none of it.
        """
        if generation is None:
            return
        if self._count and generation is not self._generation:
            self._wanted = generation.want_previews(self._count)
        self._generation = generation
        if self._count is None:
            generation.previews.follow()

    def events(self, record: JobRecord) -> list[Event]:
        """Return the events of new previews, and of warnings about them.

        Args:
            record: the job after the latest look.
        """
        if record.state is JobState.RUNNING and self._count and self._generation is None:
            self._warnings.append(RequestWarning(param=PARAM, code="adjusted", message=ELSEWHERE))
            self._count = 0
        if record.state is JobState.SUCCEEDED and self._wanted is not None:
            self._warnings += self._wanted.missing(PARAM)
        previews = [] if record.state is JobState.QUEUED else self._new(record)
        events = [now(EventKind.WARNING, warning) for warning in self._warnings]
        self._warnings.clear()
        return [*(now(EventKind.PREVIEW, preview) for preview in previews), *events]

    def _new(self, record: JobRecord) -> list[JobPreview]:
        if self._wanted is not None:
            return self._wanted.take()
        latest = self._generation.previews.latest if self._generation is not None else None
        if self._count == 0 or latest is None or latest is self._shown or record.state is not JobState.RUNNING:
            return []
        self._shown = latest
        return [latest]

    def stop(self) -> None:
        """Say that they are wanted no more."""
        if self._generation is not None and self._wanted is not None:
            self._generation.previews.drop(self._wanted)
            self._wanted = None
