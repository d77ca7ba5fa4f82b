"""A request on its way through the queue, and what comes out of it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from cache_dit_serving.errors import ServingError
from cache_dit_serving.jobs import metrics
from cache_dit_serving.jobs.wanted_previews import WantedPreviews
from cache_dit_serving.media.values import Media
from cache_dit_serving.pipeline.protocol import DrawRecord
from cache_dit_serving.planning.planned import Planned
from cache_dit_serving.schemas.answers import RequestWarning
from cache_dit_serving.schemas.jobs import JobPreview


@dataclass(frozen=True)
class Encoded:
    """One finished image: its file, and how it came about."""

    content: bytes
    extension: str
    encode_s: float
    record: DrawRecord
    media: Media | None = None
    """The raw image, where the call keeps it."""


class TakenOver(Exception):
    """Another server has the job of this generation; nothing was drawn."""


@dataclass(eq=False)
class Generation:
    """A request on its way through the queue. Written by the pipeline's thread, but for its preview; read by any."""

    id: str
    planned: Planned
    priority: int = 0
    """Greater ones run before."""
    caller: str = ""
    """Who sent it, as far as that is known; each has a share of the pipeline."""
    submitted: float = field(default_factory=time.time)
    started: float | None = None
    finished: float | None = None
    step: int = 0
    """Denoising steps done, over all images."""
    cached_steps: int = 0
    """Those among them that reused blocks."""
    warnings: list[RequestWarning] = field(default_factory=list)
    """What had no effect or came out otherwise than asked; those of its call first."""
    given_up: ServingError | None = None
    """Why it was stopped, where its caller did not want that."""
    result: Future[list[Encoded]] = field(default_factory=Future)
    changed: Callable[[], None] = lambda: None
    """Called on the pipeline's thread when it has started and after each step, on another one after each preview."""
    preview: JobPreview | None = None
    """The latest."""
    wanted: list[WantedPreviews] = field(default_factory=list)
    """Previews that followers want, by follower."""
    followed: float = -math.inf
    """When somebody last looked who does not say how many previews it wants, by the monotonic clock."""
    may_start: Callable[[], bool] = lambda: True
    """Asked on the pipeline's thread when it is to start: whether it is still this server's."""
    _cancelled: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        assert not self.planned.to_resize, "pictures are resized before a request queues, not on the pipeline's thread"
        for warning in self.planned.warnings:
            self.warn(warning)

    def warn(self, warning: RequestWarning) -> None:
        """Have a warning stand in the answer, once."""
        if warning in self.warnings:
            return
        self.warnings.append(warning)
        # The field alone: a client chooses how many pictures it numbers.
        metrics.WARNINGS.labels(warning.code, warning.param.partition(".")[0]).inc()

    def want_previews(self, count: int) -> WantedPreviews:
        """Have so many previews made for one more follower, who gets the latest of those that there are as well."""
        wanted = WantedPreviews(count, self.planned.call.num_inference_steps, len(self.planned.calls), self.step)
        if self.preview is not None and wanted.is_due(self.step):
            wanted.add(self.preview)
        self.wanted.append(wanted)
        return wanted

    def follow(self) -> None:
        """Say that somebody looks for previews, as many as the server makes by itself."""
        self.followed = time.monotonic()

    @property
    def steps(self) -> int:
        return self.planned.steps

    def cancel(self) -> None:
        """Have it stopped after the step it is at; by :class:`PipelineWorker` alone, which knows where it stands."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()
