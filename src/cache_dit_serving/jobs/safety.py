"""The operator's check of a generation's texts and outputs, counted and traced."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from opentelemetry.context import Context

from cache_dit_serving.config.safety import SafetySettings, Subject
from cache_dit_serving.errors import RefusedBySafetyCheck, SafetyCheckFailed
from cache_dit_serving.jobs import metrics
from cache_dit_serving.jobs.generation import Generation
from cache_dit_serving.media.kinds import MEDIA_TYPES
from cache_dit_serving.media.outputs import File
from cache_dit_serving.planning.planned import Planned
from cache_dit_serving.safety.check import SafetyCheck
from cache_dit_serving.safety.verdict import ALLOWED, CheckFailed, Verdict
from cache_dit_serving.tracing import Value, current, finished_span

logger = logging.getLogger(__name__)


class Safety:
    """The operator's check, if there is one."""

    def __init__(self, settings: SafetySettings) -> None:
        """
        Raises:
            ConfigError: the check cannot be imported.
        """
        self._settings = settings
        self._check = SafetyCheck(settings) if settings.check is not None else None

    @property
    def sees_outputs(self) -> bool:
        """True if outputs are checked."""
        return self._settings.sees_outputs

    async def check_prompt(self, id: str, caller: str, planned: Planned) -> None:
        """Check all texts that would reach the pipeline.

        Raises:
            RefusedBySafetyCheck: the verdict is refuse or blank.
            SafetyCheckFailed: the check failed, and `safety.on_error` is refuse.
        """
        texts = texts_of(planned)
        if self._check is None or not self._settings.sees_prompts or not texts:
            return
        with _measured("prompt", current()) as measured:
            try:
                verdict = await self._check.asked(_subject("prompt", id, caller, texts))
                measured.verdict = verdict.decision
            except CheckFailed as failure:
                measured.verdict = "error"
                verdict = self._failed("prompt", id, failure)
        if verdict.decision != "allow":
            raise RefusedBySafetyCheck("the prompt", verdict.reason, param="prompt")

    def check_output(self, generation: Generation, index: int, file: File) -> Verdict:
        """Check one output; blocks for as long as `safety.timeout_s`. Return the verdict allow or blank.

        Raises:
            RefusedBySafetyCheck: the verdict is refuse.
            SafetyCheckFailed: as :meth:`check_prompt`.
            ServingError: the generation was cancelled.
        """
        if self._check is None or not self._settings.sees_outputs:
            return ALLOWED
        if generation.cancelled:
            raise generation.stop_error
        content, extension = file
        planned = generation.planned
        subject = _subject("output", generation.id, generation.caller, texts_of(planned)) | {
            "index": index,
            "kind": str(planned.call.makes),
            "media_type": MEDIA_TYPES[extension],
            "size_bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "file": content,
        }
        with _measured("output", generation.trace, output=index) as measured:
            try:
                verdict = self._check.ask(subject)
                measured.verdict = verdict.decision
            except CheckFailed as failure:
                measured.verdict = "error"
                verdict = self._failed("output", generation.id, failure)
        if verdict.decision == "refuse":
            raise RefusedBySafetyCheck("an output", verdict.reason)
        return verdict

    def _failed(self, subject: str, id: str, failure: CheckFailed) -> Verdict:
        logger.error("%s: the safety check of its %s failed: %s", id, subject, failure)
        if self._settings.on_error == "refuse":
            raise SafetyCheckFailed
        return ALLOWED


@dataclass
class _Measured:
    """A check that is being made."""

    verdict: str | None = None
    """Its decision, or error; None where it was given up, as its client has left."""


@contextmanager
def _measured(subject: Subject, within: Context | None, **attributes: int) -> Iterator[_Measured]:
    """Context manager that counts the check in its body, and makes a span of it.

    Args:
        within: context of the request's spans; None: it has none.
    """
    measured, began, wall = _Measured(), time.perf_counter(), time.time()
    try:
        yield measured
    finally:
        seconds = time.perf_counter() - began
        metrics.SAFETY_SECONDS.labels(subject).observe(seconds)
        described: dict[str, Value] = {"subject": subject, **attributes}
        if measured.verdict is not None:
            metrics.SAFETY_CHECKS.labels(subject, measured.verdict).inc()
            described["verdict"] = measured.verdict
        if within is not None:
            finished_span("safety_check", within, wall, seconds, attributes=described)


def texts_of(planned: Planned) -> dict[str, str]:
    """Return every text that reaches the pipeline, by argument; texts in lists by argument and place."""
    found: dict[str, str] = {}

    def look(name: str, value: Any) -> None:
        if isinstance(value, str):
            found[name] = value
        elif isinstance(value, list | tuple):
            for index, each in enumerate(value):
                look(f"{name}.{index}", each)
        elif isinstance(value, Mapping):
            for key, each in value.items():
                look(f"{name}.{key}", each)

    for name, value in planned.call.arguments.items():
        look(name, value)
    return {name: text for name, text in found.items() if text}


def _subject(subject: str, id: str, caller: str, texts: Mapping[str, str]) -> dict[str, Any]:
    return {"subject": subject, "request_id": id, "caller": caller, "texts": dict(texts)}
