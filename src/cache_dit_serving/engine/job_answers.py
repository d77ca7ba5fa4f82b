"""Answers about jobs, with addresses that are signed where there are API keys."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace

from cache_dit_serving.config.settings import Settings
from cache_dit_serving.errors import InternalError
from cache_dit_serving.jobs.record import JobRecord, same_fields
from cache_dit_serving.media.outputs import Outputs
from cache_dit_serving.media.signing import Signer
from cache_dit_serving.schemas.answers import ErrorDetail, GenerateResponse, timestamp
from cache_dit_serving.schemas.jobs import JobAnswer, JobMoment, JobsResponse, JobState

logger = logging.getLogger(__name__)

EVENTS_S = 300
"""Seconds for which the signed address of a job's events is valid."""


class JobAnswers:
    """Jobs as their own routes answer them."""

    def __init__(self, settings: Settings, outputs: Outputs) -> None:
        self._outputs = outputs
        self._public_url = (settings.outputs.public_url or "").rstrip("/")
        self._signer = Signer(settings.outputs.root, EVENTS_S) if settings.server.has_keys else None

    async def answer(self, record: JobRecord) -> JobAnswer:
        """Return a job with the address of its events, and with URLs of its outputs that are valid from now on.

        Raises:
            InternalError: an address cannot be signed.
        """
        events = _events_of(record.id)
        if self._signer is not None:
            try:
                events += f"?{await asyncio.to_thread(self._signer.query, events)}"
            except OSError as error:
                logger.exception("the route of a job's events cannot be signed")
                raise InternalError from error
        return answer_of(await self.with_valid_urls(record)).model_copy(update={"events": events})

    async def with_valid_urls(self, record: JobRecord) -> JobRecord:
        """Return a job whose result has URLs that are valid from now on, where they expire.

        Raises:
            InternalError: they cannot be signed.
        """
        if record.result is None or not self._outputs.expiring or record.asked.get("output_format") == "path":
            return record
        base_url = self._public_url or record.base_url
        addresses = await asyncio.to_thread(
            lambda: [self._outputs.address(file, "url", base_url) for file in record.files]
        )
        result = GenerateResponse.model_validate_json(record.result)
        result.images = addresses if result.images is not None else None
        result.video = addresses[0] if result.video is not None else None
        result.audio = addresses[0] if result.audio is not None else None
        return replace(record, result=result.model_dump_json())

    async def signs(self, name: str, query: Mapping[str, str]) -> bool:
        """Return whether a query holds the valid signature of a job's events."""
        return self._signer is not None and await asyncio.to_thread(self._signer.holds, _events_of(name), query)


def answer_of(record: JobRecord) -> JobAnswer:
    """Return a job as it is, without the address of its events."""
    # A database may still have the estimates of the state before.
    if record.state is not JobState.QUEUED:
        record = replace(record, position=None, starts_in_s=None)
    if record.state is not JobState.RUNNING:
        record = replace(record, seconds_left=None)
    values = same_fields(record, JobAnswer) | {
        "state": record.state,
        "model": record.asked.get("model"),
        "history": [JobMoment(state=each, at=timestamp(at)) for each, at in record.history],
        "outputs": [f"/jobs/{record.id}/outputs/{number}" for number in range(len(record.files))],
        "result": GenerateResponse.model_validate_json(record.result) if record.result is not None else None,
        "error": ErrorDetail.model_validate_json(record.error) if record.error is not None else None,
    }
    return JobAnswer(**values)


def page_of(records: Sequence[JobRecord], limit: int) -> JobsResponse:
    """Return a page of jobs without their results.

    Args:
        records: one more than the page has, where another page follows.
        limit: jobs on the page.
    """
    answers = [answer_of(record).model_copy(update={"result": None}) for record in records[:limit]]
    return JobsResponse(jobs=answers, next=answers[-1].id if len(records) > limit else None)


def _events_of(name: str) -> str:
    """Return the route of a job's events, which is the name that is signed."""
    return f"/jobs/{name}/events"
