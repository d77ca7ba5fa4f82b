"""Shadow runs: cached outputs that the pipeline draws again without the cache while nothing waits.

A run never delays a caller by more than the step it is at, or the block of an encoder or decoder (on several ranks, all
that runs before the first step or after the last one): it begins while the queue is empty, and stops once anything
waits. It is begun anew later. The time of all runs stays under a share of the time since the model was ready.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from PIL import Image

from cache_dit_serving.config.shadow import ShadowSettings
from cache_dit_serving.errors import ServingError
from cache_dit_serving.jobs import metrics
from cache_dit_serving.jobs.watchdog import Watchdog
from cache_dit_serving.media.kinds import OutputSpec
from cache_dit_serving.media.values import Media
from cache_dit_serving.pipeline.protocol import Runner, Sampled, SampleRecord, Stopped, TakePreview
from cache_dit_serving.planning.call import ImageCall
from cache_dit_serving.planning.planned import Planned
from cache_dit_serving.planning.shadow import ShadowCalls

logger = logging.getLogger(__name__)

MOST_WAITING = 16
"""Outputs that wait for their run; the oldest gives way."""
MOST_BYTES = 2**30
"""Bytes of outputs and inputs that wait for their run."""
MOST_ATTEMPTS = 5
"""Attempts at a run that callers stop; then it is given up."""
SAVED_S = 3600.0
"""Seconds of quiet whose unused share of the time is kept for later."""


class Drawn(Protocol):
    """A generation that has outputs."""

    @property
    def id(self) -> str: ...

    @property
    def submitted(self) -> float: ...

    @property
    def planned(self) -> Planned: ...


@dataclass(frozen=True)
class Shadow:
    """A generation that is drawn again, with the outputs of it that there are."""

    id: str
    """Id of the request."""
    at: float
    """Time of the request, seconds since the epoch."""
    calls: ShadowCalls
    spec: OutputSpec
    """Format of its files."""
    bytes: int
    """Bytes that it holds while it waits: the output that its caller got, and pictures of its arguments."""
    cached: Sampled | None = None
    """Output at the speed asked for; None: it is still to be drawn."""
    reference: Sampled | None = None
    """Output without the cache; None: it is still to be drawn."""
    attempts: int = 0

    @property
    def missing(self) -> list[ImageCall]:
        """Calls that are still to be drawn."""
        pairs = ((self.calls.reference, self.reference), (self.calls.cached, self.cached))
        return [call for call, drawn in pairs if drawn is None]

    def with_output(self, call: ImageCall, drawn: Sampled) -> Shadow:
        """Return it with the output of one of its two calls; unchanged if the call is another one."""
        if call is self.calls.cached:
            return replace(self, cached=drawn)
        return replace(self, reference=drawn) if call is self.calls.reference else self


class ShadowRuns:
    """The runs that wait, and the time that they may take."""

    def __init__(
        self,
        settings: ShadowSettings,
        changed: threading.Condition,
        watchdog: Watchdog,
        *,
        name: str = "",
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """
        Args:
            changed: guards the runs, together with the queue; notified of a new one.
            watchdog: gets a sign of life at each step.
            name: the model's name in requests, for metrics.
            now: seconds.
        """
        self._settings = settings
        self._changed = changed
        self._watchdog = watchdog
        self._name = name
        self._now = now
        self._waiting: deque[Shadow] = deque()
        self._take: Callable[[Shadow], None] = lambda shadow: None
        self._since: float | None = None
        """Time to which the allowance is counted; None before the model is ready."""
        self._began: float | None = None
        self._allowance_s = 0.0
        self._spent_s = 0.0
        self._last_s = 0.0
        """Seconds of the last run that was not stopped."""

    def compare_with(self, take: Callable[[Shadow], None]) -> None:
        """Have `take` called with each finished run, on the pipeline's thread. It must not block."""
        self._take = take

    @property
    def waiting(self) -> int:
        """Number of outputs that wait for their run."""
        return len(self._waiting)

    @property
    def took(self) -> float:
        """Share of the time since :meth:`begin` that all runs took, stopped ones included."""
        return 0.0 if self._began is None else self._spent_s / max(1.0, self._now() - self._began)

    def offer(self, generation: Drawn, index: int, media: Media, record: SampleRecord) -> None:
        """Have an output wait for its run, if its request is to be drawn again. Any thread may call."""
        calls = generation.planned.shadow
        if calls is None or index != calls.output:
            return
        held = media.array.nbytes + sum(map(_bytes_of, calls.cached.arguments.values()))
        if held > MOST_BYTES:
            metrics.SHADOW_RUNS.labels("too_large", self._name).inc()
            return
        shadow = Shadow(generation.id, generation.submitted, calls, generation.planned.output, held)
        shadow = shadow.with_output(generation.planned.calls[index], Sampled(lambda: media, record))
        with self._changed:
            self._waiting.append(shadow)
            while len(self._waiting) > MOST_WAITING or sum(each.bytes for each in self._waiting) > MOST_BYTES:
                self._waiting.popleft()
                metrics.SHADOW_RUNS.labels("overtaken", self._name).inc()
            metrics.SHADOW_WAITING.labels(self._name).set(len(self._waiting))
            self._changed.notify()

    def clear(self) -> None:
        """Drop all that wait: the model has other weights than drew their outputs."""
        with self._changed:
            self._waiting.clear()
            metrics.SHADOW_WAITING.labels(self._name).set(0)

    def begin(self) -> None:
        """Count the allowance from now on: the model is ready."""
        self._since = self._now()
        if self._began is None:
            self._began = self._since

    def wait_s(self) -> float | None:
        """Return the seconds until a run may begin; None: none waits."""
        if not self._waiting:
            return None
        self._allow()
        return max(0.0, (self._cost_s(self._waiting[-1]) - self._allowance_s) / self._settings.at_most)

    def run(self, runner: Runner, is_wanted: Callable[[], bool]) -> None:
        """Draw an output that the newest one lacks; on the pipeline's thread, while nothing waits.

        Args:
            is_wanted: whether the pipeline is wanted for something else.
        """
        with self._changed:
            shadow = self._waiting.pop()
        began = self._now()
        shadow, outcome = self._drawn(shadow, runner, is_wanted)
        self._pay(self._now() - began)
        if outcome == "drawn":
            self._last_s = self._now() - began
        metrics.SHADOW_RUNS.labels(outcome, self._name).inc()
        with self._changed:
            if outcome == "stopped" and shadow.attempts < MOST_ATTEMPTS:
                self._waiting.appendleft(shadow)
            elif outcome == "drawn" and shadow.missing:
                self._waiting.append(shadow)
            metrics.SHADOW_WAITING.labels(self._name).set(len(self._waiting))
        if outcome == "drawn" and not shadow.missing:
            self._take(shadow)

    def _drawn(self, shadow: Shadow, runner: Runner, is_wanted: Callable[[], bool]) -> tuple[Shadow, str]:
        """Draw an output that a run lacks; return the run as it is then, and its outcome."""
        call = shadow.missing[0]
        try:
            if any(lora.name not in runner.loras() for lora in call.loras):
                return shadow, "overtaken"  # by requests for other LoRAs, whose place in memory it would take
            drawn = runner.sample(call, _ShadowWatch(is_wanted, self._watchdog))
            return shadow.with_output(call, drawn), "drawn"
        except Stopped:
            return replace(shadow, attempts=shadow.attempts + 1), "stopped"
        except ServingError as error:
            logger.warning("request %s is not drawn again without the cache: %s", shadow.id, error.message)
        except Exception:
            logger.exception("request %s is not drawn again without the cache", shadow.id)
        return shadow, "failed"

    def _cost_s(self, shadow: Shadow) -> float:
        """Return the seconds that the next run is expected to take: as the output that there is, all steps computed.

        It is not less than the last run took, so that a wrong expectation does not take more than the share.
        """
        known = shadow.cached or shadow.reference
        if known is None:
            return self._last_s
        record, steps = known.record, shadow.missing[0].num_inference_steps
        computed = max(1, record.cache.computed_steps)
        expected_s = record.encode_prompt_s + record.denoise_s / computed * steps + record.decode_s
        return max(expected_s, self._last_s)

    def _allow(self) -> None:
        now = self._now()
        if self._since is not None:
            most_s = SAVED_S * self._settings.at_most
            self._allowance_s = min(most_s, self._allowance_s + (now - self._since) * self._settings.at_most)
        self._since = now

    def _pay(self, seconds: float) -> None:
        self._allow()
        self._allowance_s -= seconds
        self._spent_s += seconds
        metrics.SHADOW_SECONDS.labels(self._name).inc(seconds)


class _ShadowWatch:
    """Watch of a run: it stops once the pipeline is wanted for something else."""

    def __init__(self, is_wanted: Callable[[], bool], watchdog: Watchdog) -> None:
        self._is_wanted = is_wanted
        self._watchdog = watchdog

    @property
    def cancelled(self) -> bool:
        return self._is_wanted()

    def progress(self, done: int, cached: int) -> None:
        self._watchdog.sign()

    def preview(self, done: int, take: TakePreview) -> None:
        pass


def _bytes_of(value: Any) -> int:
    """Return the bytes of pictures in an argument."""
    if isinstance(value, Image.Image):
        return value.width * value.height * len(value.getbands())
    return sum(map(_bytes_of, value)) if isinstance(value, list) else 0
