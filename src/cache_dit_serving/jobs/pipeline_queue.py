"""The bounded queue in front of the pipeline: admission to it, and estimates of the waits in it.

Beside generations it holds actions, which run between two of them (flushing the cache).
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Final, NamedTuple, TypeVar

from cache_dit_serving.errors import QueueFull, RateLimited
from cache_dit_serving.jobs import metrics
from cache_dit_serving.jobs.generation import Generation, always
from cache_dit_serving.jobs.queue import Order, Queue
from cache_dit_serving.jobs.residents import Placed, Residents
from cache_dit_serving.jobs.served_model import ServedModel
from cache_dit_serving.jobs.shared import CallerCounts
from cache_dit_serving.jobs.switching import Turn
from cache_dit_serving.pipeline.protocol import Runner
from cache_dit_serving.schemas.answers import QueueReport

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Action(NamedTuple):
    """Work on a model beside generations."""

    model: ServedModel
    run: Callable[[Runner], None]
    future: Future[Any]
    needs_weights: bool
    """True if the model must be awake."""


class PipelineQueue:
    """Work that waits for the pipeline's thread, and the generation that runs. For any thread."""

    def __init__(
        self,
        changed: threading.Condition,
        residents: Residents,
        *,
        max_queue: int,
        order: Order,
        counts: CallerCounts | None,
        switch_after_s: float | None = None,
    ) -> None:
        """
        Args:
            changed: guards the queue, together with the models' states; notified of new work.
            max_queue: generations that may wait.
            counts: generations of each caller at all workers; None: this one counts its own.
            switch_after_s: as of :class:`PipelineThread`.
        """
        self.max_queue: Final = max_queue
        self._changed = changed
        self._residents = residents
        self._counts = counts
        self._waiting = Queue(order, _seconds_of, placement=self._placed_after_running, switch_after_s=switch_after_s)
        self._actions: deque[Action] = deque()
        self._running: Generation | None = None

    def submit(
        self,
        generation: Generation,
        model: ServedModel,
        max_live: int | None = None,
        may_start: Callable[[], bool] = always,
    ) -> None:
        """Admit a generation of a model; as :meth:`PipelineWorker.submit`."""
        with self._changed:
            if model.loading.state != "ready":
                raise model.loading.not_ready()
            running = [self._running] if self._running is not None else []
            live = sum(each.caller == generation.caller for each in (*self._waiting.unordered, *running))
            if max_live is not None and live >= max_live:
                raise self.too_many_live(live, generation, model)
            if not self._waiting.room_for(generation.caller, self.max_queue):
                full = len(self._waiting) >= self.max_queue
                raise QueueFull(
                    f"{len(self._waiting)} generations are waiting, as many as this server lets wait; come back later"
                    if full
                    else f"this key's share of the queue of {self.max_queue} is taken; come back later",
                    retry_after_s=self._seconds_until_room(),
                )
            self._count(generation, model, max_live)
            generation.admit(model, may_start)
            self._waiting.add(generation)
            metrics.QUEUE_WAITING.set(len(self._waiting))
            self._changed.notify()

    def _count(self, generation: Generation, model: ServedModel, max_live: int | None) -> None:
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
            raise self.too_many_live(live, generation, model)

    def too_many_live(self, live: int, refused: Generation, model: ServedModel) -> RateLimited:
        """Return the error of a generation; as :meth:`PipelineWorker.too_many_live`."""
        with self._changed:
            return RateLimited(
                f"{live} generations of this key wait or run, as many as it may have; come back later",
                retry_after_s=self._seconds_until_one_ends(refused, model),
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

    def between_generations(
        self, model: ServedModel, action: Callable[[Runner], T], *, needs_weights: bool = True, loads: bool = False
    ) -> Future[T]:
        """Admit an action on a model; as :meth:`PipelineWorker.between_generations`.

        Args:
            loads: whether a model that is not loaded is loaded for it.
        """
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()

        def run(runner: Runner) -> None:
            try:
                future.set_result(action(runner))
            except Exception as error:
                logger.exception("an action on the pipeline failed")
                future.set_exception(error)

        with self._changed:
            if model.loading.state != "ready" and not (loads and model.loading.wants_load):
                raise model.loading.not_ready()
            self._actions.append(Action(model, run, future, needs_weights))
            self._changed.notify()
        return future

    @property
    def has_work(self) -> bool:
        """True if anything waits."""
        return bool(self._actions or self._waiting)

    def needs_weights(self, model: ServedModel) -> bool:
        """Return whether anything waits that needs a model awake."""
        with self._changed:
            return any(generation.model is model for generation in self._waiting.unordered) or any(
                action.needs_weights and action.model is model for action in self._actions
            )

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

    def refuse(self, model: ServedModel | None = None) -> None:
        """Fail all that waits for a model, and its generation that runs, by the model's state; None: for any."""
        with self._changed:
            left = [each for each in self._waiting.unordered if model in (None, each.model)]
            for generation in left:
                self._waiting.remove(generation)
            if self._running is not None and model in (None, self._running.model):
                left.append(self._running)
                self._running = None
            actions = [each for each in self._actions if model in (None, each.model)]
            self._actions = deque(each for each in self._actions if each not in actions)
            metrics.QUEUE_WAITING.set(len(self._waiting))
        for generation in left:
            generation.fail(generation.model.loading.not_ready())
        for action in actions:
            action.future.set_exception(action.model.loading.not_ready())

    def give_up_running(self) -> None:
        """Stop the generation that runs after the step it is at."""
        with self._changed:
            if self._running is not None:
                self._running.give_up(self._running.model.loading.not_ready())

    def report(self) -> QueueReport:
        """Return the queue as it is now."""
        running = self._running
        return QueueReport(
            waiting=len(self._waiting),
            running=running is not None,
            step=running.step if running else 0,
            steps=running.steps if running else 0,
        )

    def wait_s(self, model: ServedModel, priority: int = 0) -> float:
        """Return the seconds until a generation submitted now begins; as :meth:`PipelineWorker.wait_s`."""
        with self._changed:
            turns = [turn for turn in self._waiting.turns() if turn.generation.priority >= priority]
            placed = self._placed_after_running()
            for turn in turns:
                placed = placed.after(turn.generation)
            own_s = 0.0 if model in placed.awake else model.residency.wake_left_s()
            return self._seconds_behind(turns) + own_s

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
            turns = self._waiting.turns()
            place = [turn.generation for turn in turns].index(generation)
            return self._seconds_behind(turns[:place]) + turns[place].switch_s

    def seconds_left(self, generation: Generation) -> float | None:
        """Return the seconds until the generation that runs ends; None for another, or where that is not known."""
        if generation is not self._running or (seconds := _seconds_of(generation)) is None:
            return None
        return generation.model.residency.wake_left_s() + seconds * (1 - generation.step / max(1, generation.steps))

    def _placed_after_running(self) -> Placed:
        placed = self._residents.placed()
        return placed if self._running is None else placed.after(self._running)

    def _seconds_behind(self, turns: Sequence[Turn]) -> float:
        """Return the seconds until the running generation and those that wait have ended, by what such ones took."""
        return self._seconds_until_free() + sum(turn.switch_s + (_seconds_of(turn.generation) or 0.0) for turn in turns)

    def _seconds_until_room(self) -> float:
        """Return the seconds until the next generation leaves the queue, with the switch to its model before."""
        turns = self._waiting.turns()
        return self._seconds_until_free() + (turns[0].switch_s if turns else 0.0)

    def _seconds_until_free(self) -> float:
        """Return the seconds until the running generation ends, with the switch to its model before."""
        running = self._running
        if running is None:
            return 0.0
        steps = max(1, running.steps)
        left = (1 if running.cancelled else steps - running.step) / steps
        return running.model.residency.wake_left_s() + left * (_seconds_of(running) or 1.0)

    def _seconds_until_one_ends(self, refused: Generation, model: ServedModel) -> float:
        """Return the seconds until one of the caller's generations ends.

        Where all of them are at other workers or servers, one of them is taken to last as long as the refused one.
        """
        if self._running is not None and self._running.caller == refused.caller:
            return self._seconds_until_free()
        turns = self._waiting.turns()
        for index, turn in enumerate(turns):
            if turn.generation.caller == refused.caller:
                return self._seconds_behind(turns[: index + 1])
        return model.rates.estimate(refused.planned).seconds or 1.0


def _seconds_of(generation: Generation) -> float | None:
    """Return the seconds that a generation is known to take once its model is awake."""
    return generation.model.rates.estimate(generation.planned).seconds
