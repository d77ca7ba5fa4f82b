"""The bounded queue in front of the pipeline: admission to it, and estimates of the waits in it.

Beside generations it holds actions, which run between two of them (flushing the cache).
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final, NamedTuple, TypeVar

from cache_dit_serving.errors import QueueFull, RateLimited
from cache_dit_serving.jobs import metrics
from cache_dit_serving.jobs.generation import Generation, always
from cache_dit_serving.jobs.model_loading import ModelLoading
from cache_dit_serving.jobs.queue import Order, Queue
from cache_dit_serving.jobs.rates import Rates
from cache_dit_serving.jobs.shared import CallerCounts
from cache_dit_serving.pipeline.protocol import Runner
from cache_dit_serving.schemas.answers import QueueReport

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Action(NamedTuple):
    """Work beside generations."""

    run: Callable[[Runner], None]
    future: Future[Any]
    needs_weights: bool
    """True if the model must be awake."""


class PipelineQueue:
    """Work that waits for the pipeline's thread, and the generation that runs. For any thread."""

    def __init__(
        self,
        changed: threading.Condition,
        model: ModelLoading,
        rates: Rates,
        *,
        max_queue: int,
        order: Order,
        counts: CallerCounts | None,
        wake_left_s: Callable[[], float],
    ) -> None:
        """
        Args:
            changed: guards the queue, together with the model's state; notified of new work.
            max_queue: generations that may wait.
            counts: generations of each caller at all workers; None: this one counts its own.
            wake_left_s: seconds until a model that is asleep can draw.
        """
        self.max_queue: Final = max_queue
        self._changed = changed
        self._model = model
        self._rates = rates
        self._counts = counts
        self._wake_left_s = wake_left_s
        self._waiting = Queue(order, lambda call: rates.estimate(call).seconds)
        self._actions: deque[Action] = deque()
        self._running: Generation | None = None

    def submit(
        self, generation: Generation, max_live: int | None = None, may_start: Callable[[], bool] = always
    ) -> None:
        """Admit a generation; as :meth:`PipelineWorker.submit`."""
        with self._changed:
            if self._model.state != "ready":
                raise self._model.not_ready()
            running = [self._running] if self._running is not None else []
            live = sum(each.caller == generation.caller for each in (*self._waiting, *running))
            if max_live is not None and live >= max_live:
                raise self.too_many_live(live, generation)
            if not self._waiting.room_for(generation.caller, self.max_queue):
                full = len(self._waiting) >= self.max_queue
                raise QueueFull(
                    f"{len(self._waiting)} generations are waiting, as many as this server lets wait; come back later"
                    if full
                    else f"this key's share of the queue of {self.max_queue} is taken; come back later",
                    retry_after_s=self._seconds_until_room(),
                )
            self._count(generation, max_live)
            generation.admit(may_start)
            self._waiting.add(generation)
            metrics.QUEUE_WAITING.set(len(self._waiting))
            self._changed.notify()

    def _count(self, generation: Generation, max_live: int | None) -> None:
        """Count a generation among those of its caller at all workers, until it ends.

        Raises:
            RateLimited: there are as many of its caller's as it may have.
        """
        if self._counts is None or not generation.caller:
            return
        counts = self._counts
        number, live = counts.begin(generation.caller, max_live)
        if number is not None:
            generation.result.add_done_callback(lambda _: counts.end(number))
        elif max_live is not None and live >= max_live:
            raise self.too_many_live(live, generation)

    def too_many_live(self, live: int, refused: Generation) -> RateLimited:
        """Return the error of a generation; as :meth:`PipelineWorker.too_many_live`."""
        with self._changed:
            return RateLimited(
                f"{live} generations of this key wait or run, as many as it may have; come back later",
                retry_after_s=self._seconds_until_one_ends(refused),
            )

    def cancel(self, generation: Generation) -> None:
        """Take a generation out, or stop it after the step it is at. Does nothing to one that is done."""
        with self._changed:
            generation.cancel()
            if generation in self._waiting:
                self._waiting.remove(generation)
                metrics.QUEUE_WAITING.set(len(self._waiting))
                generation.fail(generation.stop_error)

    def set_priority(self, generation: Generation, priority: int) -> bool:
        """Change the priority of a generation; as :meth:`PipelineWorker.set_priority`."""
        with self._changed:
            if generation not in self._waiting:
                return False
            self._waiting.set_priority(generation, priority)
            return True

    def between_generations(self, action: Callable[[Runner], T], *, needs_weights: bool = True) -> Future[T]:
        """Admit an action; as :meth:`PipelineWorker.between_generations`."""
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()

        def run(runner: Runner) -> None:
            try:
                future.set_result(action(runner))
            except Exception as error:
                logger.exception("an action on the pipeline failed")
                future.set_exception(error)

        with self._changed:
            if self._model.state != "ready":
                raise self._model.not_ready()
            self._actions.append(Action(run, future, needs_weights))
            self._changed.notify()
        return future

    @property
    def has_work(self) -> bool:
        """True if anything waits."""
        return bool(self._actions or self._waiting)

    @property
    def needs_weights(self) -> bool:
        """True if anything waits that needs the model awake."""
        return bool(self._waiting) or any(action.needs_weights for action in self._actions)

    def take(self) -> Generation | Action | None:
        """Take the next work, actions first; None where nothing waits. A generation runs until :meth:`done`."""
        with self._changed:
            if not self.has_work:
                return None
            if self._actions:
                return self._actions.popleft()
            self._running = self._waiting.next()
            metrics.QUEUE_WAITING.set(len(self._waiting))
            return self._running

    def done(self) -> None:
        """Take note that the work taken is done."""
        with self._changed:
            self._running = None

    def take_waiting(self) -> list[Generation]:
        """Take out all generations that wait."""
        with self._changed:
            waiting = self._waiting.clear()
            metrics.QUEUE_WAITING.set(0)
            return waiting

    def refuse_all(self) -> None:
        """Fail all that waits, and the generation that runs, by the model's state."""
        with self._changed:
            left = [*self._waiting.clear(), *([self._running] if self._running else [])]
            self._running = None
            actions, self._actions = self._actions, deque()
        for generation in left:
            if not generation.result.done():
                generation.fail(self._model.not_ready())
        for action in actions:
            action.future.set_exception(self._model.not_ready())

    def give_up_running(self) -> None:
        """Stop the generation that runs after the step it is at."""
        with self._changed:
            if self._running is not None:
                self._running.give_up(self._model.not_ready())

    def report(self) -> QueueReport:
        """Return the queue as it is now."""
        running = self._running
        return QueueReport(
            waiting=len(self._waiting),
            running=running is not None,
            step=running.step if running else 0,
            steps=running.steps if running else 0,
        )

    def wait_s(self, priority: int = 0) -> float:
        """Return the seconds until a generation submitted now begins; as :meth:`PipelineWorker.wait_s`."""
        with self._changed:
            return self._seconds_behind([each for each in self._waiting if each.priority >= priority])

    def position(self, generation: Generation) -> int | None:
        """Return 0 for a generation that runs, 1 and more for one that waits, None for one that is done."""
        with self._changed:
            if generation is self._running:
                return 0
            return list(self._waiting).index(generation) + 1 if generation in self._waiting else None

    def seconds_before(self, generation: Generation) -> float | None:
        """Return the seconds until a generation that waits begins; None for one that does not wait."""
        with self._changed:
            if generation not in self._waiting:
                return None
            waiting = list(self._waiting)
            return self._seconds_behind(waiting[: waiting.index(generation)])

    def seconds_left(self, generation: Generation) -> float | None:
        """Return the seconds until the generation that runs ends; None for another, or where that is not known."""
        if generation is not self._running or (seconds := self._rates.estimate(generation.planned).seconds) is None:
            return None
        return self._wake_left_s() + seconds * (1 - generation.step / max(1, generation.steps))

    def _seconds_behind(self, waiting: list[Generation]) -> float:
        """Return the seconds until the running generation and those that wait have ended, by what such ones took."""
        return self._seconds_until_room() + sum(self._rates.estimate(each.planned).seconds or 0.0 for each in waiting)

    def _seconds_until_room(self) -> float:
        """Return the seconds until the running generation ends and the next leaves the queue, with a wake before."""
        running = self._running
        wake_s = self._wake_left_s()
        if running is None:
            return wake_s
        steps = max(1, running.steps)
        left = (1 if running.cancelled else steps - running.step) / steps
        return wake_s + left * (self._rates.estimate(running.planned).seconds or 1.0)

    def _seconds_until_one_ends(self, refused: Generation) -> float:
        """Return the seconds until one of the caller's generations ends.

        Where all of them are at other workers or servers, one of them is taken to last as long as the refused one.
        """
        if self._running is not None and self._running.caller == refused.caller:
            return self._seconds_until_room()
        waiting = list(self._waiting)
        for index, own in enumerate(waiting):
            if own.caller == refused.caller:
                return self._seconds_behind(waiting[: index + 1])
        return self._rates.estimate(refused.planned).seconds or 1.0
