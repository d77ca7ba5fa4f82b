"""The pipeline's steps while it draws: noted in their generation, signs of life for the watchdog, lines in the log."""

from __future__ import annotations

import logging
import time

from cache_dit_serving.jobs.generation import Generation
from cache_dit_serving.jobs.previews import PreviewMaker
from cache_dit_serving.jobs.watchdog import Watchdog
from cache_dit_serving.pipeline.protocol import TakePreview

logger = logging.getLogger(__name__)

LOG_PROGRESS_S = 10.0
"""Seconds between two lines of the log about the progress of a generation that lasts."""


class GenerationWatch:
    """Watch of one output, which a runner calls after each step and stops for."""

    def __init__(self, generation: Generation, index: int, previews: PreviewMaker, watchdog: Watchdog) -> None:
        """
        Args:
            index: number of the output in its generation, from 0.
        """
        self._generation = generation
        self._previews = previews
        self._watchdog = watchdog
        self._before = generation.planned.call.num_inference_steps * index
        self._cached_before = generation.cached_steps
        self._last_logged = time.monotonic()
        self._first: float | None = None
        self.step_s: float | None = None
        """Seconds of a step so far; None before the second one."""

    @property
    def cancelled(self) -> bool:
        """True once the runner is to stop."""
        return self._generation.cancelled

    def progress(self, done: int, cached: int) -> None:
        """Take note of the steps done, and of those among them that reused blocks."""
        self._watchdog.sign()
        generation = self._generation
        step = self._before + min(done, generation.planned.call.num_inference_steps)
        generation.progress(step, self._cached_before + cached)
        if time.monotonic() - self._last_logged > LOG_PROGRESS_S:
            self._last_logged = time.monotonic()
            logger.info("at step %d of %d", generation.step, generation.steps)
        now = time.perf_counter()
        if self._first is None:
            self._first = now
        elif done > 1:
            self.step_s = (now - self._first) / (done - 1)

    def preview(self, done: int, take: TakePreview) -> None:
        """Offer a preview of the latents after so many steps."""
        self._previews.offer(self._before + done, done, take)
