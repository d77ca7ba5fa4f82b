"""Place of the model's memory: the device while it is awake, the host's memory or the disk while it is asleep.

All changes happen on the pipeline's thread, between two generations. Any thread may read.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from cache_dit_serving.config.residency import SleepLevel
from cache_dit_serving.errors import InternalError, InvalidRequest, OutOfMemory, ServingError, WakeFailed
from cache_dit_serving.jobs import metrics
from cache_dit_serving.jobs.model_loading import ModelLoading
from cache_dit_serving.jobs.watchdog import Watchdog

logger = logging.getLogger(__name__)


class SleepPolicy(NamedTuple):
    """Settings of the sleep that begins by itself."""

    after_s: float | None = None
    """Seconds without a request after which the model goes to sleep; None: it stays awake."""
    level: SleepLevel | None = None
    """None: as :meth:`Residency.usual_level`."""


class FellAsleep(NamedTuple):
    """Result of an attempt to sleep."""

    level: SleepLevel | None
    """Level of the sleep; None: the model is awake, since a request came meanwhile."""
    freed_bytes: int
    seconds: float


class NotLoadedAgain(Exception):
    """A model on disk could not be loaded, or the server shuts down. The model's state has the reason."""


class Residency:
    """Sleep and wake of one model."""

    def __init__(
        self,
        model: ModelLoading,
        watchdog: Watchdog,
        policy: SleepPolicy,
        *,
        name: str = "",
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            watchdog: gets a sign of life at each piece of the weights.
            name: the model's name in requests, for metrics.
            now: seconds.
        """
        self._model = model
        self._watchdog = watchdog
        self._policy = policy
        self._name = name
        self._now = now
        self._used = now()
        """Time since which nothing has used the model."""
        self._wake_s: dict[SleepLevel, float] = {}
        """Seconds that waking from each level is known to take."""
        self._waking_since: float | None = None
        self.level: SleepLevel | None = None
        """Level of the sleep; None: the model is awake."""
        self.woke_s = 0.0
        """Seconds of the latest :meth:`wake`."""
        self._freed_bytes = 0
        """Bytes that the sleep gave back."""

    @property
    def wakes_from(self) -> SleepLevel | None:
        """Level that the model wakes from: the disk too before its first load, and after a load that failed; None: it
        is awake."""
        return self.level if self._model.in_memory else "disk"

    def usual_level(self) -> SleepLevel:
        """Return the level where none is named: the host's memory for a model on CUDA devices, else the disk."""
        return self._policy.level or ("host" if self._model.runner.facts.device.startswith("cuda") else "disk")

    def used(self) -> None:
        """Count the idle time from now on."""
        self._used = self._now()

    def wait_s(self) -> float | None:
        """Return the seconds until the model goes to sleep by itself; None: it does not."""
        if self._policy.after_s is None or self.level is not None:
            return None
        return max(0.0, self._used + self._policy.after_s - self._now())

    def wake_left_s(self) -> float:
        """Return the seconds until the model is awake, once a request needs it; 0 if it is."""
        level = self.wakes_from
        if level is None:
            return 0.0
        since = self._waking_since
        return max(0.0, self._wake_s.get(level, 0.0) - (0.0 if since is None else self._now() - since))

    def doze(self, is_wanted: Callable[[], bool]) -> None:
        """Go to sleep because nothing used the model for long; if that is refused, the log says why."""
        try:
            self.sleep(None, is_wanted)
        except ServingError as error:
            logger.warning("server.sleep_after_s: the model stays awake: %s", error.message)
        except Exception:
            logger.exception("server.sleep_after_s: the model stays awake")
        self.used()

    def sleep(self, level: SleepLevel | None, is_wanted: Callable[[], bool]) -> FellAsleep:
        """Go to sleep, or from the host's memory to the disk. From the disk there is no way to the host's memory.

        Args:
            level: None: the usual one.
            is_wanted: whether anything waits for the pipeline; it undoes the sleep.

        Raises:
            InvalidRequest: the model cannot sleep at this level.
        """
        level = level or self.level or self.usual_level()
        if self.level in (level, "disk"):
            return FellAsleep(self.level, 0, 0.0)
        if level == "disk" and self._model.runner.facts.weights_version is not None:
            words = "disk: the weights were reloaded, and waking would load those of the start; `host` keeps them"
            raise InvalidRequest(words, param="level")
        began = self._now()
        freed: int | None = None
        if level == "disk":
            if not is_wanted():
                freed = self._model.drop()
                self._wake_s.setdefault(level, self._model.load_s)
        else:
            freed = self._model.runner.sleep(lambda: self._signed(is_wanted))
        seconds = self._now() - began
        if freed is None:
            metrics.SLEEPS.labels(level, "undone", self._name).inc()
            logger.info("the model stays awake: a request came while it went to sleep")
            return FellAsleep(None, 0, seconds)
        # Until it is measured: the same bytes go back the same way.
        self._wake_s.setdefault(level, seconds)
        self._set(level, self._freed_bytes + freed)
        metrics.SLEEPS.labels(level, "asleep", self._name).inc()
        logger.info("asleep (%s) after %.2f s: %.2f GiB are given back", level, seconds, freed / 2**30)
        return FellAsleep(level, freed, seconds)

    def wake(self) -> float:
        """Wake up, or load for the first time; return the seconds that it took, 0 for a model that is awake.

        Raises:
            WakeFailed: the device has too little free memory. The model is asleep as before.
            ServingError: RunnerLost or InternalError; the model is asleep as before, or is loaded anew.
            NotLoadedAgain: a model on disk could not be loaded, or the server shuts down.
        """
        level, self.woke_s = self.wakes_from, 0.0
        if level is None:
            return 0.0
        began, is_first = self._now(), not self._model.has_loaded
        with self._waking(began):
            if level == "disk":
                if not self._model.load():
                    self._set(None)
                    raise NotLoadedAgain
            else:
                try:
                    with self._watchdog.watching():
                        self._model.runner.wake(self._watchdog.sign)
                except OutOfMemory:
                    metrics.WAKE_FAILURES.labels(self._name).inc()
                    raise WakeFailed from None
                except ServingError:
                    raise
                except Exception:
                    logger.exception("the model does not wake")
                    raise InternalError from None
        self.woke_s = self._wake_s[level] = seconds = self._now() - began
        self._set(None)
        self.used()
        if is_first:
            return seconds
        metrics.WAKE_SECONDS.labels(level, self._name).observe(seconds)
        logger.info("awake (from %s) after %.2f s", level, seconds)
        return seconds

    def lost(self) -> None:
        """Take note that the runner was lost: the model that is loaded next is awake."""
        self._set(None)
        self.used()

    @contextmanager
    def _waking(self, began: float) -> Iterator[None]:
        self._waking_since = began
        try:
            yield
        finally:
            self._waking_since = None

    def _signed(self, is_wanted: Callable[[], bool]) -> bool:
        self._watchdog.sign()
        return is_wanted()

    def _set(self, level: SleepLevel | None, freed: int = 0) -> None:
        self.level, self._freed_bytes = level, freed
        metrics.tell_sleep(self._name, level, freed)
