"""The loop of the one thread that owns the pipeline: it loads the model, then runs what the queue has.

While nothing waits it draws shadow runs, and has an idle model go to sleep.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial

from cache_dit_serving.errors import DETAILS, ServingError
from cache_dit_serving.jobs.generation import Generation
from cache_dit_serving.jobs.model_loading import ModelLoading
from cache_dit_serving.jobs.output_maker import OutputMaker
from cache_dit_serving.jobs.pipeline_queue import Action, PipelineQueue
from cache_dit_serving.jobs.residency import NotLoadedAgain, Residency
from cache_dit_serving.jobs.shadow_runs import ShadowRuns
from cache_dit_serving.jobs.watchdog import Watchdog
from cache_dit_serving.logs import noted

logger = logging.getLogger(__name__)

LOST_S = 1.0
"""Seconds between two looks at an idle runner."""


class PipelineLoop:
    """Work of the pipeline's thread, one thing at a time."""

    def __init__(
        self,
        changed: threading.Condition,
        *,
        model: ModelLoading,
        queue: PipelineQueue,
        residency: Residency,
        outputs: OutputMaker,
        shadows: ShadowRuns,
        watchdog: Watchdog,
    ) -> None:
        """
        Args:
            changed: guards the queue, together with the model's state; notified of new work.
        """
        self._changed = changed
        self._model = model
        self._queue = queue
        self._residency = residency
        self._outputs = outputs
        self._shadows = shadows
        self._watchdog = watchdog

    def run(self) -> None:
        """Load the model and serve until a drain has ended, or the model cannot be loaded."""
        try:
            self._load_and_serve()
        finally:
            self._watchdog.close()

    def _load_and_serve(self) -> None:
        if not self._model.load():
            return
        try:
            while self._serve():
                self._residency.lost()
                if not self._model.load_anew():
                    self._queue.refuse_all()
                    return
        except NotLoadedAgain:
            self._queue.refuse_all()
        except Exception as error:
            # Nothing should come here; if something does, a server that says ready must not let requests wait for ever.
            logger.exception("the pipeline's thread failed")
            self._model.fail(f"the pipeline stopped working{DETAILS}", error)
            self._queue.refuse_all()

    def _serve(self) -> bool:
        """Run the work that comes; return True once the runner was lost, False at the end of a drain.

        Raises:
            NotLoadedAgain: the model could not be loaded again from the disk.
        """
        self._shadows.begin()
        self._residency.used()
        while True:
            with self._changed:
                while_idle = self._wait_for_work()
                if self._model.runner.lost is not None:
                    return True
                work = None if while_idle else self._queue.take()
                if work is None and while_idle is None:
                    self._model.runner.close()
                    return False
            if while_idle is not None:
                with self._watchdog.watching():
                    while_idle()
                continue
            if isinstance(work, Generation):
                self._make(work)
            elif work is not None:
                self._act(work)
            self._residency.used()
            self._queue.done()
            # Or the last request's images would stay in memory until the next one comes.
            del work

    def _make(self, generation: Generation) -> None:
        with noted(request_id=generation.id, caller=generation.caller):
            if not generation.cancelled:
                try:
                    generation.woke(self._residency.wake())
                except ServingError as error:
                    generation.fail(error)
                    return
            with self._watchdog.watching(generation.id):
                self._outputs.make(self._model.runner, generation)

    def _act(self, action: Action) -> None:
        if action.needs_weights:
            try:
                self._residency.wake()
            except NotLoadedAgain:
                action.future.set_exception(self._model.not_ready())
                raise
            except ServingError as error:
                action.future.set_exception(error)
                return
        with self._watchdog.watching():
            action.run(self._model.runner)

    def _wait_for_work(self) -> Callable[[], None] | None:
        """Wait for work, the end of a drain or the loss of the runner; return the action of an idle time before that.

        It is a shadow run, or the begin of the sleep.
        """
        while not self._is_wanted():
            runner = self._model.runner
            # A runner of several processes may be lost while it is idle.
            if runner.lost is not None:
                break
            sleep_s = self._residency.wait_s()
            if sleep_s == 0:
                return partial(self._residency.doze, self._needs_weights)
            shadow_s = self._shadows.wait_s() if self._residency.level is None else None
            if shadow_s == 0:
                return partial(self._shadows.run, runner, self._is_wanted)
            self._changed.wait(min(each for each in (LOST_S, sleep_s, shadow_s) if each is not None))
        return None

    def _is_wanted(self) -> bool:
        """Return whether the pipeline's thread is wanted for work, or for the end of a drain."""
        return self._model.draining or self._queue.has_work

    def _needs_weights(self) -> bool:
        """Return whether the model is wanted awake, or the server shuts down."""
        return self._model.draining or self._queue.needs_weights
