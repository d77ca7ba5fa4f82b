"""The model of a worker: its loading, again and again where that is asked for, and the worker's state by it."""

from __future__ import annotations

import gc
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Literal

from cache_dit_serving.errors import DETAILS, LoadError, NeedsMemory, NotReady, logged, without_frames
from cache_dit_serving.jobs.on_disk import OnDisk
from cache_dit_serving.jobs.rates import Rates
from cache_dit_serving.jobs.watchdog import Watchdog
from cache_dit_serving.pipeline.protocol import Loaded, Runner, SampleRecord

logger = logging.getLogger(__name__)

State = Literal["unloaded", "loading", "ready", "failed", "draining"]
"""unloaded: one of several models, which its first request loads."""

LoadAgain = Callable[[Callable[[str], None], Loaded], Loaded]
"""Function that loads a model, given one that takes the current stage, and the model as it was loaded before."""
RETRY_S = 5.0
"""Seconds after which a failed load is tried again; twice as many after each further one."""
MOST_RETRY_S = 300.0
"""Maximum wait for a further attempt, seconds."""


class ModelLoading:
    """Loads a model on the pipeline's thread, and knows the worker's state. Any thread may read it."""

    def __init__(
        self,
        load: Callable[[Callable[[str], None]], Loaded],
        changed: threading.Condition,
        watchdog: Watchdog,
        rates: Rates,
        *,
        on_ready: Callable[[Loaded], None],
        on_failed: Callable[[], None],
        retries: bool,
        on_state: Callable[[], None],
        on_request: bool = False,
        give_way: Callable[[], bool] = lambda: False,
        again: LoadAgain | None = None,
    ) -> None:
        """
        Args:
            changed: guards the state, together with the queue, which admits by it.
            rates: learn from the warm-up.
            on_failed: called when the model cannot be loaded, or not loaded again.
            retries: whether a load that fails is tried again, with a growing wait.
            on_state: called after each change of the state.
            on_request: whether a request loads the model, for the first time and after a failure: one of several.
            give_way: called where the memory does not suffice: has another model give way; False: none can.
            again: loads a model that was loaded before; None: as for the first time.
        """
        self._load = load
        self._again = again
        self._changed = changed
        self._watchdog = watchdog
        self._rates = rates
        self._on_ready = on_ready
        self._on_failed = on_failed
        self._retries = retries
        self._on_state = on_state
        self._on_request = on_request
        self._give_way = give_way
        self._loaded: Loaded | None = None
        self._state: State = "unloaded" if on_request else "loading"
        self._reason: str | None = "its first request loads it" if on_request else "starting"
        self.load_s = 0.0
        """Seconds that the latest load took."""
        self._failed_at = 0.0
        """Time of the latest failure, monotonic seconds."""

    @property
    def state(self) -> State:
        """State of the worker. A lost runner counts as loading at once, before the pipeline's thread loads anew; a
        pipeline that stands still counts as failed until it goes on."""
        loaded = self._loaded
        if self._state == "ready" and self._watchdog.stalled:
            return "failed"
        lost = self._state == "ready" and loaded is not None and loaded.runner.ended
        return "loading" if lost else self._state

    @property
    def reason(self) -> str | None:
        """Stage of the loading, or the reason of a failure."""
        if self._state == "ready" and self._watchdog.stalled:
            return f"the pipeline stands still for more than {self._watchdog.max_step_s:g} s"
        if self._state == "ready" and self.state == "loading":
            return "the model's processes were lost"
        return self._reason

    @property
    def draining(self) -> bool:
        """True once the server shuts down; no other state follows."""
        return self._state == "draining"

    @property
    def has_loaded(self) -> bool:
        """True once the model was loaded, whatever has become of it."""
        return self._loaded is not None

    @property
    def in_memory(self) -> bool:
        """True while the model's weights are in memory, of the device or the host."""
        return self._loaded is not None and not isinstance(self._loaded.runner, OnDisk)

    @property
    def lost(self) -> str | None:
        """Reason that the runner of the latest load was lost; None: it was not."""
        return self._loaded.runner.lost if self._loaded is not None else None

    @property
    def runner(self) -> Runner:
        """Runner of the latest load, which must have succeeded; for the pipeline's thread."""
        assert self._loaded is not None
        return self._loaded.runner

    def loaded(self) -> Loaded:
        """Return the loaded model.

        Raises:
            NotReady: it is loading, failed to load, or the server is shutting down.
        """
        if self._loaded is None or self.state != "ready":
            raise self.not_ready()
        return self._loaded

    def not_ready(self) -> NotReady:
        """Return the error of a request that comes in this state."""
        messages = {
            "unloaded": f"the model is not loaded: {self.reason}",
            "loading": f"the model is loading: {self.reason}",
            "failed": f"the model cannot be served: {self.reason}",
            "draining": "the server is shutting down",
            "ready": "the server is ready",
        }
        # A failed load that is not retried does not mend itself: no time to come back after.
        state = self.state
        after_failure_s = RETRY_S if self._retries or self._on_request else None
        waits = {"unloaded": 0.0, "loading": 5.0, "draining": 10.0, "failed": after_failure_s}
        retry_after_s = waits.get(state)
        return NotReady(messages[state], code=state, retry_after_s=retry_after_s)

    def no_previews(self, pipeline_class: str) -> str | None:
        """Return why a pipeline class of the model has no previews; None where it has, or may have."""
        return self._loaded.runner.no_previews(pipeline_class) if self._loaded is not None else None

    def load(self) -> bool:
        """Load the model, again and again if it is to be retried; return whether there is one."""
        waits = _retry_waits() if self._retries else iter(())
        with self._changed:
            if self._state in ("unloaded", "failed"):
                self._state, self._reason = "loading", "starting"
                self._on_state()
        while not self._load_once():
            if self.draining or (wait_s := next(waits, None)) is None:
                return False
            gc.collect()  # what the attempt left in cycles holds memory that the next one needs
            logger.info("the model is loaded again in %.0f s", wait_s)
            with self._changed:
                if self._changed.wait_for(lambda: self.draining, wait_s):
                    return False
                self._state, self._reason = "loading", "loading again"
        return True

    def load_anew(self) -> bool:
        """Load the model after its runner was lost; return whether there is one again."""
        runner = self.runner
        with self._changed:
            if not self.draining:
                self._state, self._reason = "loading", f"the model's processes were lost ({runner.lost})"
                self._on_state()
        logger.error("the model's processes were lost (%s)", runner.lost)
        runner.close()
        return not self.draining and self.load()

    @property
    def wants_load(self) -> bool:
        """True if a request loads the model now: it was never loaded, or failed :data:`RETRY_S` seconds ago."""
        if not self._on_request or self.draining:
            return False
        if self._state == "failed":
            return time.monotonic() > self._failed_at + RETRY_S
        return self._state == "unloaded"

    def drop(self) -> int:
        """Free the model, which :meth:`load` loads again; return the freed bytes. The state stays as it is."""
        assert self._loaded is not None
        runner = self._loaded.runner
        self._loaded = replace(self._loaded, runner=OnDisk(runner), warm_up=())
        return runner.drop()

    def fail_for_good(self, reason: str, cause: BaseException) -> None:
        """Take note that the model cannot be served any more, whatever requests come."""
        self._on_request = self._retries = False
        self.fail(reason, cause)

    def fail(self, reason: str, cause: BaseException | None = None) -> None:
        """Take note that the model cannot be served."""
        logger.error("failed: %s", logged(reason, cause))
        with self._changed:
            if not self.draining:
                self._state, self._reason, self._failed_at = "failed", reason, time.monotonic()
                self._on_state()
        self._on_failed()

    def drain(self) -> bool:
        """Take note that the server shuts down; return False if it did before."""
        with self._changed:
            if self.draining:
                return False
            self._state, self._reason = "draining", "the server is shutting down"
            self._on_state()
            return True

    def correct(self, record: SampleRecord) -> None:
        """Correct the model's traits by the record of an output."""
        if self._loaded is not None:
            self._loaded = replace(self._loaded, model=record.corrected(self._loaded.model))

    def _load_with_room(self, progress: Callable[[str], None]) -> Loaded:
        """Load the model, once other models have given way where the memory does not suffice."""
        while True:
            try:
                if self._again is not None and self._loaded is not None:
                    return self._again(progress, self._loaded)
                return self._load(progress)
            except NeedsMemory as error:
                refused = without_frames(error)
            gc.collect()
            if not self._give_way():
                raise refused

    def _load_once(self) -> bool:
        began = time.perf_counter()

        def progress(what: str) -> None:
            logger.info("%s (%.1f s)", what, time.perf_counter() - began)
            with self._changed:
                if self._state in ("loading", "ready"):  # ready: a model on disk, which is loaded again
                    self._reason = what

        try:
            self._loaded = self._load_with_room(progress)
        except LoadError as error:
            self.fail(str(error), error.__cause__)
            return False
        except Exception as error:
            # Whatever it was, it must not end the process: the supervisor would start it again for ever.
            logger.exception("loading failed")
            self.fail(f"the model could not be loaded{DETAILS}", error)
            return False
        for call, record in self._loaded.warm_up:
            self._rates.learn(call, record, of_request=False)
        with self._changed:
            if self.draining:
                return False
            self._state, self._reason = "ready", None
            self._on_state()
            self.load_s = time.perf_counter() - began
        logger.info("ready after %.1f s", time.perf_counter() - began)
        try:
            self._on_ready(self._loaded)
        except Exception:
            logger.exception("what should follow on ready failed")
        return True


def _retry_waits() -> Iterator[float]:
    """Seconds before each further attempt."""
    return (min(RETRY_S * 2**attempt, MOST_RETRY_S) for attempt in itertools.count())
