"""The operator's check of a generation's texts and outputs, counted and traced."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping
from typing import Any

from cache_dit_serving.config.safety import SafetySettings
from cache_dit_serving.errors import RefusedBySafetyCheck, SafetyCheckFailed
from cache_dit_serving.jobs import metrics
from cache_dit_serving.jobs.generation import Generation
from cache_dit_serving.media.kinds import MEDIA_TYPES
from cache_dit_serving.media.outputs import File
from cache_dit_serving.planning.planned import Planned
from cache_dit_serving.safety.check import SafetyCheck
from cache_dit_serving.safety.verdict import ALLOWED, CheckFailed, Verdict
from cache_dit_serving.tracing import finished_span, span

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
        began = time.perf_counter()
        with span("safety_check", subject="prompt"):
            try:
                verdict = await self._check.asked(_subject("prompt", id, caller, texts))
            except CheckFailed as failure:
                verdict = self._failed("prompt", id, failure)
            else:
                metrics.SAFETY_CHECKS.labels("prompt", verdict.decision).inc()
            finally:
                metrics.SAFETY_SECONDS.labels("prompt").observe(time.perf_counter() - began)
            if verdict.decision != "allow":
                raise RefusedBySafetyCheck("the prompt", verdict.reason, param="prompt")

    def check_output(self, generation: Generation, index: int, file: File) -> Verdict:
        """Check one output; blocks for as long as `safety.timeout_s`. Return the verdict allow or blank.

        Raises:
            RefusedBySafetyCheck: the verdict is refuse.
            SafetyCheckFailed: as :meth:`check_prompt`.
        """
        if self._check is None or not self._settings.sees_outputs:
            return ALLOWED
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
        began, wall = time.perf_counter(), time.time()
        said = "error"
        try:
            verdict = self._check.ask(subject)
            said = verdict.decision
            metrics.SAFETY_CHECKS.labels("output", said).inc()
        except CheckFailed as failure:
            verdict = self._failed("output", generation.id, failure)
        finally:
            seconds = time.perf_counter() - began
            metrics.SAFETY_SECONDS.labels("output").observe(seconds)
            if generation.trace is not None:
                attributes: dict[str, str | int] = {"subject": "output", "output": index, "verdict": said}
                finished_span("safety_check", generation.trace, wall, seconds, attributes=attributes)
        if verdict.decision == "refuse":
            raise RefusedBySafetyCheck("an output", verdict.reason)
        return verdict

    def _failed(self, subject: str, id: str, failure: CheckFailed) -> Verdict:
        metrics.SAFETY_CHECKS.labels(subject, "error").inc()
        logger.error("%s: the safety check of its %s failed: %s", id, subject, failure)
        if self._settings.on_error == "refuse":
            raise SafetyCheckFailed
        return ALLOWED


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
