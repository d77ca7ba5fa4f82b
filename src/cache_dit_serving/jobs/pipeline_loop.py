"""The loop of the one thread that owns the pipelines: it loads their models, then runs what the queue has.

While nothing waits it draws shadow runs, and has idle models go to sleep.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from functools import partial

from cache_dit_serving.errors import DETAILS, InternalError, ServingError
from cache_dit_serving.jobs.generation import Generation
from cache_dit_serving.jobs.output_maker import OutputMaker
from cache_dit_serving.jobs.pipeline_queue import Action, PipelineQueue
from cache_dit_serving.jobs.residency import NotLoadedAgain
from cache_dit_serving.jobs.residents import Residents
from cache_dit_serving.jobs.served_model import ServedModel
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
        models: Sequence[ServedModel],
        residents: Residents,
        queue: PipelineQueue,
        outputs: OutputMaker,
        watchdog: Watchdog,
    ) -> None:
        """
        Args:
            changed: guards the queue, together with the models' states; notified of new work.
            models: the default one first.
        """
        self._changed = changed
        self._models = models
        self._residents = residents
        self._queue = queue
        self._outputs = outputs
        self._watchdog = watchdog
        self.begun = False
        """True once the models of the start were loaded, or failed to load."""

    def run(self) -> None:
        """Load the models of the start, and serve until a drain has ended, or the only model cannot be loaded."""
        try:
            self._load_and_serve()
        finally:
            self._watchdog.close()

    @property
    def _draining(self) -> bool:
        return self._models[0].loading.draining

    def _load_and_serve(self) -> None:
        if not self._load_first():
            return
        try:
            while (lost := self._serve()) is not None:
                lost.residency.lost()
                if not lost.loading.load_anew() and not self._goes_on_without(lost):
                    return
                lost.shadows.begin()
        except Exception as error:
            # Nothing should come here; if something does, a server that says ready must not let requests wait for ever.
            logger.exception("the pipeline's thread failed")
            for model in self._models:
                model.loading.fail_for_good(f"the pipeline stopped working{DETAILS}", error)
            self._queue.refuse()

    def _load_first(self) -> bool:
        """Load the models of the start; return whether the thread goes on."""
        for model in self._models:
            if model.resident == "always" or model is self._models[0]:
                try:
                    with noted(model=model.name):
                        self._made_ready(model)
                except (NotLoadedAgain, ServingError):
                    if not self._residents.are_several or self._draining:
                        return False
        self.begun = True
        return True

    def _goes_on_without(self, model: ServedModel) -> bool:
        """Refuse all that waits for a model that cannot be loaded; return whether the thread goes on."""
        self._queue.refuse(model)
        return self._residents.are_several and not self._draining

    def _serve(self) -> ServedModel | None:
        """Run the work that comes; return a model whose runner was lost, None at the end of a drain."""
        for model in self._models:
            model.residency.used()
        while True:
            with self._changed:
                while_idle = self._wait_for_work()
                if (lost := self._lost()) is not None:
                    return lost
                work = None if while_idle else self._queue.take()
                if work is None and while_idle is None:
                    for model in self._models:
                        if model.loading.has_loaded:
                            model.loading.runner.close()
                    return None
            if while_idle is not None:
                with self._watchdog.watching():
                    while_idle()
                continue
            assert work is not None
            with noted(model=work.model.name):
                try:
                    self._make(work) if isinstance(work, Generation) else self._act(work)
                except NotLoadedAgain:
                    if not self._goes_on_without(work.model):
                        return None
            work.model.residency.used()
            self._queue.done()
            # Or the last request's images would stay in memory until the next one comes.
            del work

    def _make(self, generation: Generation) -> None:
        with noted(request_id=generation.id, caller=generation.caller):
            if not generation.cancelled:
                try:
                    generation.woke(self._made_ready(generation.model))
                except ServingError as error:
                    generation.fail(error)
                    return
            with self._watchdog.watching(generation.id):
                self._outputs.make(generation)

    def _act(self, action: Action) -> None:
        if action.needs_weights:
            try:
                self._made_ready(action.model)
            except NotLoadedAgain:
                action.future.set_exception(action.model.loading.not_ready())
                raise
            except ServingError as error:
                action.future.set_exception(error)
                return
            except Exception:
                action.future.set_exception(InternalError())
                raise
        with self._watchdog.watching():
            action.run(action.model.loading.runner)

    def _made_ready(self, model: ServedModel) -> float:
        """Have a model awake; return the seconds that it took."""
        was_loaded = model.loading.has_loaded
        seconds = self._residents.make_ready(model)
        if not was_loaded:
            model.shadows.begin()
        return seconds

    def _wait_for_work(self) -> Callable[[], None] | None:
        """Wait for work, the end of a drain or the loss of a runner; return the action of an idle time before that.

        It is a shadow run, or the begin of a model's sleep.
        """
        while not self._is_wanted():
            # A runner of several processes may be lost while it is idle.
            if self._lost() is not None:
                break
            waits = [LOST_S]
            for model in self._models:
                if not model.awake:
                    continue
                sleep_s = model.residency.wait_s()
                if sleep_s == 0:
                    return partial(model.residency.doze, partial(self._needs_weights, model))
                shadow_s = model.shadows.wait_s()
                if shadow_s == 0:
                    return partial(model.shadows.run, model.loading.runner, self._is_wanted)
                waits += [each for each in (sleep_s, shadow_s) if each is not None]
            self._changed.wait(min(waits))
        return None

    def _lost(self) -> ServedModel | None:
        """Return a model whose processes were lost."""
        return next((each for each in self._models if each.loading.lost is not None), None)

    def _is_wanted(self) -> bool:
        """Return whether the pipeline's thread is wanted for work, or for the end of a drain."""
        return self._draining or self._queue.has_work

    def _needs_weights(self, model: ServedModel) -> bool:
        """Return whether a model is wanted awake, or the server shuts down."""
        return self._draining or self._queue.needs_weights(model)
