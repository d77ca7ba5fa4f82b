"""The one thread that draws, with its queue: shared by all models of a worker process.

Every door of the server enters here. The thread loads the models, then runs one generation at a time; between two of
them it does what must not overlap with any (flushing the cache, exchanging models).
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from typing import Final

from cache_dit_serving.config.residency import Resident
from cache_dit_serving.config.safety import SafetySettings
from cache_dit_serving.config.shadow import ShadowSettings
from cache_dit_serving.jobs import metrics
from cache_dit_serving.jobs.model_loading import LoadAgain, ModelLoading, State
from cache_dit_serving.jobs.output_maker import OutputMaker
from cache_dit_serving.jobs.pipeline_loop import PipelineLoop
from cache_dit_serving.jobs.pipeline_queue import PipelineQueue
from cache_dit_serving.jobs.queue import Order
from cache_dit_serving.jobs.rates import Rates
from cache_dit_serving.jobs.residency import Residency, SleepPolicy
from cache_dit_serving.jobs.residents import MemoryBounds, Residents
from cache_dit_serving.jobs.safety import Safety
from cache_dit_serving.jobs.served_model import ServedModel
from cache_dit_serving.jobs.shadow_runs import ShadowRuns
from cache_dit_serving.jobs.shared import CallerCounts
from cache_dit_serving.jobs.watchdog import Watchdog
from cache_dit_serving.pipeline.protocol import Loaded
from cache_dit_serving.schemas.answers import QueueReport

logger = logging.getLogger(__name__)

LOOK_S = 1.0
"""Seconds between two looks at a pipeline that a drain waits for."""


class PipelineThread:
    """Loads models on a thread of its own and runs generations on them, one at a time."""

    def __init__(
        self,
        *,
        max_queue: int,
        order: Order = "arrival",
        preview_every: int = 0,
        max_step_s: float = math.inf,
        counts: CallerCounts | None = None,
        safety: Safety | None = None,
        bounds: MemoryBounds | None = None,
        switch_after_s: float | None = None,
    ) -> None:
        """
        Args:
            preview_every: denoising steps from one preview to the next for followers who do not say how many they want;
                0: none.
            counts: generations of each caller at all workers; None: this one counts its own.
            safety: the operator's check of prompts and outputs; None: there is none.
            bounds: bytes of weights that may be held at once; None: shares of the memory that there is.
            switch_after_s: seconds for which generations of models in memory may go before one of another model; None:
                twice as long as its model takes to come there, or as long as all that wait take if that is longer.
        """
        self.safety: Final = safety or Safety(SafetySettings())
        # One lock for the models' states and the queue: a generation is admitted by the one to the other.
        self.changed: Final = threading.Condition()
        self._watchdog = Watchdog(min(max_step_s, threading.TIMEOUT_MAX), self._stalled_or_not)
        self._models: list[ServedModel] = []
        self._residents = Residents(bounds or MemoryBounds())
        self.queue: Final = PipelineQueue(
            self.changed,
            self._residents,
            max_queue=max_queue,
            order=order,
            counts=counts,
            switch_after_s=switch_after_s,
        )
        self._outputs = OutputMaker(
            self._watchdog, preview_every, safety=self.safety, give_way=self._residents.give_way
        )
        self._loop = PipelineLoop(
            self.changed,
            models=self._models,
            residents=self._residents,
            queue=self.queue,
            outputs=self._outputs,
            watchdog=self._watchdog,
        )
        self._thread = threading.Thread(target=self._loop.run, name="pipeline", daemon=True)

    def add(
        self,
        load: Callable[[Callable[[str], None]], Loaded],
        *,
        name: str = "",
        resident: Resident = "always",
        on_request: bool = False,
        shadow: ShadowSettings | None = None,
        sleep: SleepPolicy | None = None,
        on_ready: Callable[[Loaded], None] = lambda loaded: None,
        on_failed: Callable[[], None] = lambda: None,
        retries: bool = False,
        again: LoadAgain | None = None,
        expected_bytes: Callable[[], int] = lambda: 0,
    ) -> ServedModel:
        """Take a model in, the default one first, before the start; return it.

        Args:
            load: loads it; it is given a function that takes the current stage.
            name: name in requests; may be empty for the only model.
            on_request: whether a request loads it, for the first time and after a failure: it is one of several.
            shadow: bounds of shadow runs; None: the usual ones.
            sleep: sleep of the model by itself; None: it stays awake.
            on_failed: called when the model cannot be loaded, or not loaded again.
            retries: whether a load that fails is tried again, with a growing wait; for the only model.
            again: as of :class:`ModelLoading`.
            expected_bytes: as of :class:`ServedModel`.
        """
        rates = Rates()
        loading = ModelLoading(
            load,
            self.changed,
            self._watchdog,
            rates,
            on_ready=on_ready,
            on_failed=on_failed,
            retries=retries,
            on_state=self._tell_state,
            on_request=on_request,
            give_way=lambda: self._residents.give_way(model),
            again=again,
        )
        residency = Residency(loading, self._watchdog, sleep or SleepPolicy(), name=name)
        shadows = ShadowRuns(shadow or ShadowSettings(), self.changed, self._watchdog, name=name)
        model = ServedModel(
            name, loading, rates, residency=residency, shadows=shadows, resident=resident, expected_bytes=expected_bytes
        )
        self._models.append(model)
        self._residents.add(model)
        metrics.start_series_of(name)
        return model

    def start(self) -> None:
        """Begin loading; returns at once."""
        metrics.MAX_QUEUE.set(self.queue.max_queue)
        self._tell_state()
        self._watchdog.start()
        self._thread.start()

    @property
    def state(self) -> State:
        """State of the only model; of several: loading until those of the start are loaded, then ready as long as any
        can draw or be loaded."""
        states = [each.loading.state for each in self._models]
        if len(states) == 1 or "draining" in states:
            return states[0]
        if not self._loop.begun:
            return "loading"
        return "ready" if {"ready", "unloaded"} & {*states} else states[0]

    @property
    def stalled(self) -> bool:
        """True while the thread stands still for longer than a step may take."""
        return self._watchdog.stalled

    @property
    def sign(self) -> Callable[[], None]:
        """Function that takes a sign of life of the thread."""
        return self._watchdog.sign

    def report(self) -> QueueReport:
        """Return the queue as it is now."""
        return self.queue.report()

    def drain(self) -> None:
        """Let the running generation end; refuse those that wait and all that come."""
        with self.changed:
            if not all([each.loading.drain() for each in self._models]):
                return
            refused = self.queue.take_waiting()
            self.changed.notify()
        for generation in refused:
            generation.fail(generation.model.loading.not_ready())
        if self.stalled:
            self.queue.refuse()
        logger.info(
            "draining: %s, %d waiting refused",
            "one generation runs to its end" if self.report().running else "idle",
            len(refused),
        )

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait after :meth:`drain` until the running generation has ended.

        Returns:
            False if the thread still loads or draws then, or stands still.
        """
        end = time.monotonic() + (threading.TIMEOUT_MAX if timeout_s is None else timeout_s)
        while self._has_loaded and self._thread.is_alive() and not self.stalled:
            if (left_s := end - time.monotonic()) <= 0:
                break
            self._thread.join(min(left_s, LOOK_S))
        if self._thread.is_alive():
            return False
        self._outputs.close()
        return True

    def give_up(self) -> None:
        """Stop the running generation after the step it is at, after :meth:`drain`: its time is over."""
        self.queue.give_up_running()

    @property
    def _has_loaded(self) -> bool:
        return any(each.loading.has_loaded for each in self._models)

    def _tell_state(self) -> None:
        metrics.tell_state(self.state)

    def _stalled_or_not(self) -> None:
        self._tell_state()
        if self.state == "draining" and self.stalled:
            # A drain does not wait for what stands still.
            self.queue.refuse()
