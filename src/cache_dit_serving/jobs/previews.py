"""Previews of a generation, made beside the pipeline's thread.

A preview is made only if a follower waits for it. One preview serves all who wait for one at that step.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future
from contextvars import copy_context

from PIL import Image

from cache_dit_serving.jobs.generation import Generation
from cache_dit_serving.jobs.wanted_previews import WantedPreviews
from cache_dit_serving.media.images import webp_of
from cache_dit_serving.pipeline.protocol import TakePreview
from cache_dit_serving.schemas.jobs import JobPreview

logger = logging.getLogger(__name__)

FOLLOWED_S = 5.0
"""Seconds after its last look at which a follower of a job, who looks every second, counts as gone."""


class PreviewMaker:
    """Makes the previews of one generation, one after the other, on a thread beside the pipeline's."""

    def __init__(self, generation: Generation, thread: Executor, every: int) -> None:
        """
        Args:
            thread: a single one, which keeps them in their order.
            every: steps of an image from one to the next for followers who do not say how many they want; 0: none.
        """
        self._generation = generation
        self._thread = thread
        self._every = every
        self.last: Future[None] | None = None
        """Done once all of them are made."""

    def offer(self, step: int, done: int, take: TakePreview) -> None:
        """Have a preview made after a step, if somebody waits for it; on the pipeline's thread.

        Args:
            step: over all images.
            done: steps of the image.
        """
        waiting = self._generation.previews.due(step)
        if not (waiting or self._is_usual(done)):
            return
        if (make := take()) is None:
            _miss(waiting)
        else:
            self.last = self._thread.submit(copy_context().run, self._show, step, make, waiting)

    def _is_usual(self, done: int) -> bool:
        """Return whether one is made for those who do not say how many they want: not while another is being made."""
        if not self._every or done % self._every or (self.last is not None and not self.last.done()):
            return False
        return self._generation.previews.followed_within(FOLLOWED_S)

    def _show(self, step: int, make: Callable[[], Image.Image], waiting: list[WantedPreviews]) -> None:
        generation = self._generation
        try:
            image = base64.b64encode(webp_of(make(), generation.planned.output.source)).decode()
        except Exception:
            logger.exception("a preview of %s failed", generation.id)
            _miss(waiting)
            return
        generation.show(JobPreview(step=step, steps=generation.steps, image=image), waiting)


def _miss(waiting: Iterable[WantedPreviews]) -> None:
    for each in waiting:
        each.add(None)
