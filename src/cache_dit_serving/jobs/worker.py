"""The one thread that owns the pipeline.

Every door of the server enters here. The thread loads the model, then runs one generation at a time; between two of
them it does what must not overlap with any (flushing the cache).
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final, TypeVar

from cache_dit_serving.config.residency import SleepLevel
from cache_dit_serving.config.safety import SafetySettings
from cache_dit_serving.config.shadow import ShadowSettings
from cache_dit_serving.errors import RateLimited
from cache_dit_serving.jobs import metrics
from cache_dit_serving.jobs.generation import Generation, always
from cache_dit_serving.jobs.model_loading import ModelLoading, State
from cache_dit_serving.jobs.output_maker import OutputMaker
from cache_dit_serving.jobs.pipeline_loop import PipelineLoop
from cache_dit_serving.jobs.pipeline_queue import PipelineQueue
from cache_dit_serving.jobs.queue import Order
from cache_dit_serving.jobs.rates import Rates
from cache_dit_serving.jobs.residency import FellAsleep, Residency, SleepPolicy
from cache_dit_serving.jobs.safety import Safety
from cache_dit_serving.jobs.shadow_runs import ShadowRuns
from cache_dit_serving.jobs.shared import CallerCounts
from cache_dit_serving.jobs.watchdog import Watchdog
from cache_dit_serving.pipeline.protocol import Loaded, Reloaded, Runner, WeightsChoice
from cache_dit_serving.schemas.answers import QueueReport

logger = logging.getLogger(__name__)

T = TypeVar("T")

LOOK_S = 1.0
"""Seconds between two looks at a pipeline that a drain waits for."""


class PipelineWorker:
    """Loads a model on a thread of its own and runs generations on it, one at a time."""

    def __init__(
        self,
        load: Callable[[Callable[[str], None]], Loaded],
        *,
        max_queue: int,
        order: Order = "arrival",
        preview_every: int = 0,
        max_step_s: float = math.inf,
        counts: CallerCounts | None = None,
        safety: Safety | None = None,
        shadow: ShadowSettings | None = None,
        sleep: SleepPolicy | None = None,
        on_ready: Callable[[Loaded], None] = lambda loaded: None,
        on_failed: Callable[[], None] = lambda: None,
        retries: bool = False,
    ) -> None:
        """
        Args:
            counts: generations of each caller at all workers; None: this one counts its own.
            preview_every: denoising steps from one preview to the next for followers who do not say how many they want;
                0: none.
            safety: the operator's check of prompts and outputs; None: there is none.
            shadow: bounds of shadow runs; None: the usual ones.
            sleep: sleep of the model by itself; None: it stays awake.
            on_failed: called when the model cannot be loaded, or not loaded again.
            retries: whether a load that fails is tried again, with a growing wait.
        """
        self.rates = Rates()
        # One lock for the model's state and the queue: a generation is admitted by the one to the other.
        self._changed = threading.Condition()
        self._watchdog = Watchdog(min(max_step_s, threading.TIMEOUT_MAX), self._stalled_or_not)
        self._model = ModelLoading(
            load,
            self._changed,
            self._watchdog,
            self.rates,
            on_ready=on_ready,
            on_failed=on_failed,
            retries=retries,
        )
        self._residency = Residency(self._model, self._watchdog, sleep or SleepPolicy())
        self._queue = PipelineQueue(
            self._changed,
            self._model,
            self.rates,
            max_queue=max_queue,
            order=order,
            counts=counts,
            wake_left_s=self._residency.wake_left_s,
        )
        self.safety: Final = safety or Safety(SafetySettings())
        self.shadows: Final = ShadowRuns(shadow or ShadowSettings(), self._changed, self._watchdog)
        self._outputs = OutputMaker(
            self._model, self.rates, self._watchdog, preview_every, safety=self.safety, shadows=self.shadows
        )
        loop = PipelineLoop(
            self._changed,
            model=self._model,
            queue=self._queue,
            residency=self._residency,
            outputs=self._outputs,
            shadows=self.shadows,
            watchdog=self._watchdog,
        )
        self._thread = threading.Thread(target=loop.run, name="pipeline", daemon=True)

    def start(self) -> None:
        """Begin loading; returns at once."""
        metrics.MAX_QUEUE.set(self._queue.max_queue)
        metrics.tell_state(self._model.state)
        self._watchdog.start()
        self._thread.start()

    @property
    def state(self) -> State:
        """State of the worker; as :attr:`ModelLoading.state`."""
        return self._model.state

    @property
    def reason(self) -> str | None:
        """Stage of the loading, or the reason of a failure."""
        return self._model.reason

    @property
    def stalled(self) -> bool:
        """True while the pipeline's thread stands still for longer than a step may take."""
        return self._watchdog.stalled

    def loaded(self) -> Loaded:
        """Return the loaded model, which any thread may read; running it is this worker's alone.

        Raises:
            NotReady: it is loading, failed to load, or the server is shutting down.
        """
        return self._model.loaded()

    def no_previews(self, pipeline_class: str) -> str | None:
        """Return why a pipeline class of the model has no previews; None where it has, or may have."""
        return self._model.no_previews(pipeline_class)

    def submit(
        self, generation: Generation, max_live: int | None = None, may_start: Callable[[], bool] = always
    ) -> None:
        """Admit a generation to the queue.

        Args:
            max_live: generations of its caller that may wait or run.
            may_start: called on the pipeline's thread when it is to start; False if another server has it by then.

        Raises:
            RateLimited: there are as many of its caller's.
            QueueFull: with the time after which there should be room, from the measured rate.
            NotReady: it is loading, failed to load, or the server is shutting down.
        """
        self._queue.submit(generation, max_live, may_start)

    def too_many_live(self, live: int, refused: Generation) -> RateLimited:
        """Return the error of a generation whose caller has `live` others, as many as it may have."""
        return self._queue.too_many_live(live, refused)

    def cancel(self, generation: Generation) -> None:
        """Take a generation from the queue, or stop it after the step it is at. Does nothing to one that is done."""
        self._queue.cancel(generation)

    def set_priority(self, generation: Generation, priority: int) -> bool:
        """Change the priority of a generation that waits; return False, and change nothing, if it does not wait."""
        return self._queue.set_priority(generation, priority)

    def between_generations(self, action: Callable[[Runner], T], *, needs_weights: bool = True) -> Future[T]:
        """Run `action` on the pipeline's thread as soon as no generation runs.

        Args:
            needs_weights: whether a model that is asleep wakes for it.

        Raises:
            NotReady: it is loading, failed to load, or the server is shutting down.
        """
        return self._queue.between_generations(action, needs_weights=needs_weights)

    @property
    def asleep(self) -> SleepLevel | None:
        """Level at which the model is asleep; None: it is awake."""
        return self._residency.level

    def sleep(self, level: SleepLevel | None) -> Future[FellAsleep]:
        """Have the model go to sleep as soon as no generation runs, unless one waits then.

        Args:
            level: None: the usual one.

        Raises:
            NotReady: it is loading, failed to load, or the server is shutting down.
        """
        return self.between_generations(
            lambda runner: self._residency.sleep(level, lambda: self._model.draining or self._queue.needs_weights),
            needs_weights=False,
        )

    def reload(self, choice: WeightsChoice) -> Future[Reloaded]:
        """Put other weights in the place of the model's as soon as no generation runs.

        Raises:
            NotReady: it is loading, failed to load, or the server is shutting down.
        """

        def exchange(runner: Runner) -> Reloaded:
            reloaded = runner.reload(choice, self._watchdog.sign)
            self.shadows.clear()
            return reloaded

        return self.between_generations(exchange)

    def wake(self) -> Future[float]:
        """Wake the model up; the result is the seconds that it took, 0 for one that is awake.

        Raises:
            NotReady: it is loading, failed to load, or the server is shutting down.
        """
        return self.between_generations(lambda runner: self._residency.woke_s)

    def queue(self) -> QueueReport:
        """Return the queue as it is now."""
        return self._queue.report()

    def wait_s(self, priority: int = 0) -> float:
        """Return the seconds until a generation submitted now begins, by what those before it are known to take."""
        return self._queue.wait_s(priority)

    def position(self, generation: Generation) -> int | None:
        """Return 0 for a generation that runs, 1 and more for one that waits, None for one that is done."""
        return self._queue.position(generation)

    def seconds_before(self, generation: Generation) -> float | None:
        """Return the seconds until a generation that waits begins; None for one that does not wait."""
        return self._queue.seconds_before(generation)

    def seconds_left(self, generation: Generation) -> float | None:
        """Return the seconds until the generation that runs ends; None for another, or where that is not known."""
        return self._queue.seconds_left(generation)

    def drain(self) -> None:
        """Let the running generation end; refuse those that wait and all that come."""
        with self._changed:
            if not self._model.drain():
                return
            refused = self._queue.take_waiting()
            self._changed.notify()
        for generation in refused:
            generation.fail(self._model.not_ready())
        if self.stalled:
            self._queue.refuse_all()
        logger.info(
            "draining: %s, %d waiting refused",
            "one generation runs to its end" if self._queue.report().running else "idle",
            len(refused),
        )

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait after :meth:`drain` until the running generation has ended.

        Returns:
            False if the thread still loads or draws then, or stands still.
        """
        end = time.monotonic() + (threading.TIMEOUT_MAX if timeout_s is None else timeout_s)
        while self._model.has_loaded and self._thread.is_alive() and not self.stalled:
            if (left_s := end - time.monotonic()) <= 0:
                break
            self._thread.join(min(left_s, LOOK_S))
        if self._thread.is_alive():
            return False
        self._outputs.close()
        return True

    def give_up(self) -> None:
        """Stop the running generation after the step it is at, after :meth:`drain`: its time is over."""
        self._queue.give_up_running()

    def _stalled_or_not(self) -> None:
        metrics.tell_state(self.state)
        if self._model.draining and self.stalled:
            # A drain does not wait for what stands still.
            self._queue.refuse_all()
