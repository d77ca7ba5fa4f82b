"""A model as the rest of the server sees it: its state, and its place at the pipeline's thread."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final, TypeVar

from cache_dit_serving.config.residency import SleepLevel
from cache_dit_serving.config.shadow import ShadowSettings
from cache_dit_serving.errors import RateLimited
from cache_dit_serving.jobs.generation import Generation, always
from cache_dit_serving.jobs.model_loading import LoadAgain, State
from cache_dit_serving.jobs.pipeline_thread import PipelineThread
from cache_dit_serving.jobs.rates import Rates
from cache_dit_serving.jobs.residency import FellAsleep, SleepPolicy
from cache_dit_serving.jobs.safety import Safety
from cache_dit_serving.jobs.served_model import ServedModel
from cache_dit_serving.jobs.shadow_runs import ShadowRuns
from cache_dit_serving.pipeline.protocol import Loaded, Reloaded, Runner, WeightsChoice
from cache_dit_serving.schemas.answers import QueueReport

T = TypeVar("T")


class PipelineWorker:
    """One model at a pipeline's thread, for any thread."""

    def __init__(self, thread: PipelineThread, model: ServedModel) -> None:
        self.thread: Final = thread
        self.model: Final = model
        self._load: Future[None] | None = None
        """Load that requests wait for."""

    @classmethod
    def alone(
        cls,
        load: Callable[[Callable[[str], None]], Loaded],
        *,
        shadow: ShadowSettings | None = None,
        sleep: SleepPolicy | None = None,
        on_ready: Callable[[Loaded], None] = lambda loaded: None,
        on_failed: Callable[[], None] = lambda: None,
        retries: bool = False,
        again: LoadAgain | None = None,
        **options: Any,
    ) -> PipelineWorker:
        """Return the only model of a thread of its own, which does not run yet.

        Args:
            load: as of :meth:`PipelineThread.add`, like the other named ones.
            options: as of :class:`PipelineThread`.
        """
        thread = PipelineThread(**options)
        return cls(
            thread,
            thread.add(
                load,
                shadow=shadow,
                sleep=sleep,
                on_ready=on_ready,
                on_failed=on_failed,
                retries=retries,
                again=again,
            ),
        )

    def start(self) -> None:
        """Begin loading; returns at once."""
        self.thread.start()

    @property
    def rates(self) -> Rates:
        """Measured rates of the model."""
        return self.model.rates

    @property
    def shadows(self) -> ShadowRuns:
        """Shadow runs of the model."""
        return self.model.shadows

    @property
    def safety(self) -> Safety:
        """The operator's check of prompts and outputs."""
        return self.thread.safety

    @property
    def state(self) -> State:
        """State of the model; as :attr:`ModelLoading.state`."""
        return self.model.loading.state

    @property
    def reason(self) -> str | None:
        """Stage of the loading, or the reason of a failure."""
        return self.model.loading.reason

    @property
    def stalled(self) -> bool:
        """True while the pipeline's thread stands still for longer than a step may take."""
        return self.thread.stalled

    def loaded(self) -> Loaded:
        """Return the loaded model, which any thread may read; running it is the pipeline's thread's alone.

        Raises:
            NotReady: it is not loaded, is loading, failed to load, or the server is shutting down.
        """
        return self.model.loading.loaded()

    def load(self) -> Future[None] | None:
        """Have a model loaded that a request loads; return the future of its load, None if there is none.

        Raises:
            NotReady: the server is shutting down.
        """
        with self.thread.changed:
            if self._load is not None and not self._load.done():
                return self._load
            if not self.model.loading.wants_load:
                return None
            self._load = self.thread.queue.between_generations(self.model, lambda runner: None, loads=True)
            return self._load

    def no_previews(self, pipeline_class: str) -> str | None:
        """Return why a pipeline class of the model has no previews; None where it has, or may have."""
        return self.model.loading.no_previews(pipeline_class)

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
            NotReady: as :meth:`loaded`.
        """
        self.thread.queue.submit(generation, self.model, max_live, may_start)

    def too_many_live(self, live: int, refused: Generation) -> RateLimited:
        """Return the error of a generation whose caller has `live` others, as many as it may have."""
        return self.thread.queue.too_many_live(live, refused, self.model)

    def cancel(self, generation: Generation) -> None:
        """Take a generation from the queue, or stop it after the step it is at. Does nothing to one that is done."""
        self.thread.queue.cancel(generation)

    def set_priority(self, generation: Generation, priority: int) -> bool:
        """Change the priority of a generation that waits; return False, and change nothing, if it does not wait."""
        return self.thread.queue.set_priority(generation, priority)

    def between_generations(self, action: Callable[[Runner], T], *, needs_weights: bool = True) -> Future[T]:
        """Run `action` on the pipeline's thread as soon as no generation runs.

        Args:
            needs_weights: whether a model that is asleep wakes for it.

        Raises:
            NotReady: as :meth:`loaded`.
        """
        return self.thread.queue.between_generations(self.model, action, needs_weights=needs_weights)

    @property
    def asleep(self) -> SleepLevel | None:
        """Level at which the model is asleep; None: it is awake."""
        return self.model.residency.level

    def sleep(self, level: SleepLevel | None) -> Future[FellAsleep]:
        """Have the model go to sleep as soon as no generation runs, unless one of its own waits then.

        Args:
            level: None: the usual one.

        Raises:
            NotReady: as :meth:`loaded`.
        """
        loading, queue = self.model.loading, self.thread.queue
        return self.between_generations(
            lambda runner: self.model.residency.sleep(
                level, lambda: loading.draining or queue.needs_weights(self.model)
            ),
            needs_weights=False,
        )

    def reload(self, choice: WeightsChoice) -> Future[Reloaded]:
        """Put other weights in the place of the model's as soon as no generation runs.

        Raises:
            NotReady: as :meth:`loaded`.
        """

        def exchange(runner: Runner) -> Reloaded:
            reloaded = runner.reload(choice, self.thread.sign)
            self.shadows.clear()
            return reloaded

        return self.between_generations(exchange)

    def wake(self) -> Future[float]:
        """Wake the model up; the result is the seconds that it took, 0 for one that is awake.

        Raises:
            NotReady: as :meth:`loaded`.
        """
        return self.between_generations(lambda runner: self.model.residency.woke_s)

    def queue(self) -> QueueReport:
        """Return the queue as it is now."""
        return self.thread.report()

    def wait_s(self, priority: int = 0) -> float:
        """Return the seconds until a generation submitted now begins, by what those before it are known to take."""
        return self.thread.queue.wait_s(self.model, priority)

    def position(self, generation: Generation) -> int | None:
        """Return 0 for a generation that runs, 1 and more for one that waits, None for one that is done."""
        return self.thread.queue.position(generation)

    def seconds_before(self, generation: Generation) -> float | None:
        """Return the seconds until a generation that waits begins; None for one that does not wait."""
        return self.thread.queue.seconds_before(generation)

    def seconds_left(self, generation: Generation) -> float | None:
        """Return the seconds until the generation that runs ends; None for another, or where that is not known."""
        return self.thread.queue.seconds_left(generation)

    def drain(self) -> None:
        """Let the running generation end; refuse those that wait and all that come."""
        self.thread.drain()

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait after :meth:`drain`; as :meth:`PipelineThread.join`."""
        return self.thread.join(timeout_s)
