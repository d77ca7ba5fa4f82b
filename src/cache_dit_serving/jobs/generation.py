"""A request on its way through the queue, and what comes out of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cache_dit_serving.errors import ClientGone, ServingError
from cache_dit_serving.jobs import metrics
from cache_dit_serving.jobs.wanted_previews import PreviewDemand, WantedPreviews
from cache_dit_serving.media.values import Media
from cache_dit_serving.pipeline.protocol import SampleRecord
from cache_dit_serving.planning.planned import Planned
from cache_dit_serving.schemas.answers import RequestWarning
from cache_dit_serving.schemas.jobs import JobPreview
from cache_dit_serving.tracing import current

if TYPE_CHECKING:
    from cache_dit_serving.jobs.served_model import ServedModel


@dataclass(frozen=True)
class OutputFile:
    """One finished output: its file, and the record of its drawing."""

    content: bytes
    extension: str
    encode_s: float
    record: SampleRecord
    media: Media | None = None
    """The raw image, where the call keeps it."""


class TakenOver(Exception):
    """Another server has the job of this generation; nothing was drawn."""


def always() -> bool:
    """Let a generation start."""
    return True


class Generation:
    """A request on its way through the queue.

    Its state changes by its methods alone: those of the worker's threads admit, begin, note progress and resolve it.
    Any thread may read it, listen to it, and want previews of it.
    """

    def __init__(self, id: str, planned: Planned, priority: int = 0, caller: str = "") -> None:
        """
        Args:
            priority: greater ones run before.
            caller: sender, as far as that is known; each has a share of the pipeline.
        """
        self.id: Final = id
        self.planned: Final = planned
        self._priority = priority
        self.caller: Final = caller
        self.submitted: Final = time.time()
        self.trace: Final = current()
        """Context of the request's spans; None where there are none."""
        self.result: Final[Future[list[OutputFile]]] = Future()
        """Future outputs, for those who wait; resolved by :meth:`resolve` and :meth:`fail`."""
        self.previews: Final = PreviewDemand()
        self._started: float | None = None
        self._ran = False
        self._finished: float | None = None
        self._wake_s = 0.0
        self._step = 0
        self._cached_steps = 0
        self._warnings: list[RequestWarning] = []
        self._given_up: ServingError | None = None
        self._cancelled = threading.Event()
        self._may_start: Callable[[], bool] = always
        self._model: ServedModel | None = None
        self._listeners: list[Callable[[], None]] = []
        assert not planned.to_resize, "pictures are resized before a request queues, not on the pipeline's thread"
        for warning in planned.warnings:
            self.warn(warning)

    @property
    def priority(self) -> int:
        """Greater ones run before."""
        return self._priority

    @property
    def started(self) -> float | None:
        """Time at which the pipeline began it, seconds since the epoch."""
        return self._started

    @property
    def ran(self) -> bool:
        """True once it runs here: it was not another server's as it started."""
        return self._ran

    @property
    def waited_s(self) -> float:
        """Seconds that it has waited for the pipeline, without :attr:`wake_s`."""
        return max(0.0, (self._started or time.time()) - self.submitted - self._wake_s)

    @property
    def wake_s(self) -> float:
        """Seconds that it woke a sleeping model for, before it began."""
        return self._wake_s

    @property
    def finished(self) -> float | None:
        """Time at which the pipeline was done with it, seconds since the epoch; its outputs may still be encoded."""
        return self._finished

    @property
    def step(self) -> int:
        """Denoising steps done, over all images."""
        return self._step

    @property
    def cached_steps(self) -> int:
        """Steps among those done that reused blocks."""
        return self._cached_steps

    @property
    def steps(self) -> int:
        """Denoising steps in all, over all images."""
        return self.planned.steps

    @property
    def warnings(self) -> list[RequestWarning]:
        """Fields that had no effect, and outputs that came out otherwise than asked; those of its call first."""
        return list(self._warnings)

    @property
    def cancelled(self) -> bool:
        """True once it is to stop after the step it is at."""
        return self._cancelled.is_set()

    @property
    def stop_error(self) -> ServingError:
        """Error that it ends with where it is stopped: the reason of :meth:`give_up`, or that its caller has gone."""
        return self._given_up or ClientGone("nobody waits for this generation any more; it was stopped")

    def listen(self, changed: Callable[[], None]) -> None:
        """Have `changed` called on the pipeline's thread at the start and after each step, and on another one after
        each preview. It must not block."""
        self._listeners.append(changed)

    def warn(self, warning: RequestWarning) -> None:
        """Have a warning stand in the answer, once."""
        if warning in self._warnings:
            return
        self._warnings.append(warning)
        # The field alone: a client chooses how many images it numbers.
        metrics.WARNINGS.labels(warning.code, warning.param.partition(".")[0]).inc()

    def want_previews(self, count: int) -> WantedPreviews:
        """Have so many previews made for one more follower, who gets the latest of those that there are as well."""
        wanted = WantedPreviews(count, self.planned.call.num_inference_steps, len(self.planned.calls), self.step)
        self.previews.add(wanted, self.step)
        return wanted

    @property
    def admitted(self) -> bool:
        """True once it has entered the queue."""
        return self._model is not None

    @property
    def model(self) -> ServedModel:
        """Model that draws it; once it was admitted."""
        assert self._model is not None
        return self._model

    def admit(self, model: ServedModel, may_start: Callable[[], bool] = always) -> None:
        """Enter the queue. Only the worker resolves it from here on: those who wait on the result cannot cancel it.

        Args:
            model: draws it.
            may_start: called on the pipeline's thread when it is to start; False if another server has it by then.
        """
        self.result.set_running_or_notify_cancel()
        self._model = model
        self._may_start = may_start

    def set_priority(self, priority: int) -> None:
        """Change the priority; once it waits, by :class:`Queue` alone, whose order follows from it."""
        self._priority = priority

    def woke(self, seconds: float) -> None:
        """Take note that the model had to be woken for it."""
        self._wake_s = seconds

    def begin(self) -> bool:
        """Start, and tell the listeners; return False if it is another server's by now."""
        self._started = time.time()
        if not self._may_start():
            return False
        self._ran = True
        self._tell()
        return True

    def progress(self, step: int, cached_steps: int) -> None:
        """Take note of the steps done, over all images, and tell the listeners."""
        self._cached_steps = cached_steps
        self._step = step
        self._tell()

    def show(self, preview: JobPreview, followers: Iterable[WantedPreviews]) -> None:
        """Give a preview to the followers for whom it was made, and tell the listeners."""
        self.previews.show(preview, followers)
        self._tell()

    def finish(self) -> None:
        """Take note that the pipeline is done with it, in whatever way."""
        self._finished = time.time()

    def resolve(self, outputs: list[OutputFile]) -> None:
        """End with outputs. Does nothing to one that has ended, as by a drain while its outputs were encoded."""
        with suppress(InvalidStateError):
            self.result.set_result(outputs)

    def fail(self, error: Exception) -> None:
        """End with an error. Does nothing to one that has ended."""
        with suppress(InvalidStateError):
            self.result.set_exception(error)

    def cancel(self) -> None:
        """Have it stopped after the step it is at; by :class:`PipelineWorker` alone, which knows where it stands."""
        self._cancelled.set()

    def give_up(self, error: ServingError) -> None:
        """Have it stopped after the step it is at, and end with an error: its caller did not want that."""
        self._given_up = error
        self.cancel()

    def _tell(self) -> None:
        for changed in tuple(self._listeners):
            changed()
