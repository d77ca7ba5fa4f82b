"""The operator's check, on threads of its own: neither the event loop nor the pipeline waits for it."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

from cache_dit_serving.config.safety import SafetySettings
from cache_dit_serving.safety.by_function import Check, function_named
from cache_dit_serving.safety.by_http import HttpCheck
from cache_dit_serving.safety.verdict import CheckFailed, Verdict, verdict_of

CHECKS_AT_ONCE = 8
"""Checks that run at a time. Further ones wait within their own time limit."""

MOST_CAUSE_CHARACTERS = 300
"""Maximum length of an exception's text in the log; it may hold the prompt or the file."""


class SafetyCheck:
    """Asks the operator's function or address for a verdict, within a time limit."""

    def __init__(self, settings: SafetySettings) -> None:
        """
        Raises:
            ConfigError: the function cannot be imported.
        """
        assert settings.check is not None
        self._check: Check = HttpCheck(settings) if settings.by_http else function_named(settings.check)
        self._timeout_s = settings.timeout_s
        self._waiting: queue.SimpleQueue[tuple[Future[Verdict], Mapping[str, Any], float]] = queue.SimpleQueue()
        self._starting = threading.Lock()
        self._started = False

    def ask(self, subject: Mapping[str, Any]) -> Verdict:
        """Return the verdict; blocks for as long as the time limit.

        Raises:
            CheckFailed: the check failed, or did not answer in time.
        """
        try:
            return self._begun(subject).result(self._timeout_s)
        except TimeoutError:
            raise self._too_late() from None

    async def asked(self, subject: Mapping[str, Any]) -> Verdict:
        """Return the verdict.

        Raises:
            CheckFailed: as :meth:`ask`.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                return await asyncio.wrap_future(self._begun(subject))
        except TimeoutError:
            raise self._too_late() from None

    def _begun(self, subject: Mapping[str, Any]) -> Future[Verdict]:
        with self._starting:
            if not self._started:
                # Daemons: a function that never returns must not keep the server from ending.
                for index in range(CHECKS_AT_ONCE):
                    threading.Thread(target=self._run, name=f"safety-{index}", daemon=True).start()
                self._started = True
        verdict: Future[Verdict] = Future()
        self._waiting.put((verdict, subject, time.monotonic() + self._timeout_s))
        return verdict

    def _too_late(self) -> CheckFailed:
        return CheckFailed(f"no answer within {self._timeout_s:g} s")

    def _run(self) -> None:
        while True:
            # Nothing of a subject, which has a file, stays in this frame while the thread waits for the next one.
            self._answer(*self._waiting.get())

    def _answer(self, verdict: Future[Verdict], subject: Mapping[str, Any], end: float) -> None:
        if time.monotonic() > end or not verdict.set_running_or_notify_cancel():
            return  # nobody waits for it any more
        try:
            verdict.set_result(verdict_of(self._check(subject)))
        except CheckFailed as failure:
            verdict.set_exception(failure)
        except BaseException as error:  # noqa: BLE001 - SystemExit and CancelledError too, which would end the thread
            verdict.set_exception(CheckFailed(_cause(error)))


def _cause(error: BaseException) -> str:
    """Return an exception of the operator's function as one line for the log."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - its __str__ is the operator's too
        text = ""
    return f"{type(error).__name__}: {' '.join(text[:MOST_CAUSE_CHARACTERS].split())}"
