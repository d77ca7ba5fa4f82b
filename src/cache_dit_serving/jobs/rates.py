"""Seconds of a computed and of a reused step, and the steps that each setting reuses, learnt from what has run.

Written by the encoders' threads, read by any.
"""

from __future__ import annotations

import statistics
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from cache_dit_serving.caching.settings import CacheSettings
from cache_dit_serving.pipeline.protocol import SampleRecord
from cache_dit_serving.planning.call import ImageCall
from cache_dit_serving.planning.planned import Planned
from cache_dit_serving.schemas.answers import StepRate

K = TypeVar("K", bound=Hashable)

Statistic = Callable[[deque[float]], float]
"""Several observations to one number."""

Kind = tuple[str, str | None]
"""Hash of the cache settings, and name of the scheduler."""

WINDOW = 20
"""Newest observations that count: follows a change of load within a few images, and forgets a single slow one."""
MOST_KEYS = 512
"""Sizes and settings that are remembered, of whatever callers ask for; the longest unused are forgotten."""


@dataclass(frozen=True, order=True)
class Shape:
    """Properties of a call on which the time of a step depends."""

    pixels: int
    passes: int
    """Forward passes of a step: 2 if guidance takes one of its own."""

    @property
    def work(self) -> int:
        return self.pixels * self.passes


@dataclass(frozen=True)
class Estimate:
    """Seconds that a call takes once it is its turn."""

    seconds: float | None
    """Sum of medians; None if nothing like it has run."""
    promise_s: float | None
    """Sum of ninth deciles, which nine in ten calls keep to; None as of `seconds`."""
    known: bool
    """True if these very settings have run; otherwise every step counts as computed."""


class Observations(Generic[K]):
    """The newest numbers by key."""

    def __init__(self) -> None:
        self._numbers: OrderedDict[K, deque[float]] = OrderedDict()

    def note(self, key: K, number: float) -> None:
        self._numbers.setdefault(key, deque(maxlen=WINDOW)).append(number)
        self._numbers.move_to_end(key)
        if len(self._numbers) > MOST_KEYS:
            self._numbers.popitem(last=False)

    def of(self, key: K) -> deque[float] | None:
        if key in self._numbers:
            self._numbers.move_to_end(key)
        return self._numbers.get(key)

    def nearest(self, distance: Callable[[K], float | None]) -> tuple[K, deque[float]] | None:
        """The key with the least distance, of those that have one, and its numbers."""
        distances = {key: gap for key in self._numbers if (gap := distance(key)) is not None}
        if not distances:
            return None
        key = min(distances, key=lambda key: distances[key])
        self._numbers.move_to_end(key)
        return key, self._numbers[key]

    def __iter__(self) -> Iterator[K]:
        return iter(self._numbers)


class Rates:
    """Medians and ninth deciles over the newest observations, by shape and by cache settings."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._computed_step_s: Observations[Shape] = Observations()
        self._fixed_s: Observations[Shape] = Observations()
        self._reused_step_s: Observations[tuple[str, Shape]] = Observations()
        """Seconds of a reused step by settings, whose calibrators take their own time, and shape."""
        self._reused_steps: Observations[tuple[Kind, int, int]] = Observations()
        """Reused steps by settings and scheduler, forward passes and num_inference_steps."""
        self._of_requests: Observations[str] = Observations()
        """Seconds of the outputs that requests wanted, by settings; empty: without a cache."""

    def learn(self, call: ImageCall, record: SampleRecord, encode_s: float = 0.0, *, of_request: bool = True) -> None:
        """Record the times of one output, and the seconds that its encoding took.

        Args:
            of_request: whether a request wanted it; otherwise the start drew it.
        """
        shape, report, settings = Shape(call.pixels, record.passes), record.cache, call.cache.settings
        with self._lock:
            if of_request:
                self._of_requests.note(_digest(settings), record.seconds)
            if not record.prompt_hits:  # the next prompt may be another one
                self._fixed_s.note(shape, record.encode_prompt_s + record.decode_s + encode_s)
            if settings is not None:
                self._reused_steps.note((_kind(call, settings), shape.passes, report.steps), report.cached_steps)
            if record.cached_steps_s is None:
                return
            if report.computed_steps:
                computed_s = record.denoise_s - record.cached_steps_s
                self._computed_step_s.note(shape, computed_s / report.computed_steps)
            if settings is not None and report.cached_steps:
                self._reused_step_s.note((settings.digest(), shape), record.cached_steps_s / report.cached_steps)

    def learn_stopped(self, call: ImageCall, seconds_per_step: float) -> None:
        """Record the step time of an uncached generation that was cancelled."""
        with self._lock:
            self._computed_step_s.note(Shape(call.pixels, call.passes), seconds_per_step)

    def knows_requests(self, settings: CacheSettings | None) -> bool:
        """Return whether a request has had an output with these settings."""
        with self._lock:
            return self._of_requests.of(_digest(settings)) is not None

    def estimate(self, planned: Planned) -> Estimate:
        """Estimate the time of a request, all its outputs together."""
        with self._lock:
            usual = [self._output(call, statistics.median) for call in planned.calls]
            slow = [self._output(call, _ninth_decile) for call in planned.calls]
        return Estimate(
            _sum(seconds for seconds, _ in usual), _sum(seconds for seconds, _ in slow), all(k for _, k in usual)
        )

    def by_shape(self) -> list[StepRate]:
        """Return the rates of each shape that ran."""
        with self._lock:
            return [
                StepRate(
                    pixels=shape.pixels,
                    forward_passes=shape.passes,
                    computed_step_s=round(statistics.median(seconds), 6),
                    fixed_s=round(statistics.median(self._fixed_s.of(shape) or [0.0]), 6),
                    observations=len(seconds),
                )
                for shape in sorted(self._computed_step_s)
                if (seconds := self._computed_step_s.of(shape))
            ]

    def _output(self, call: ImageCall, statistic: Statistic) -> tuple[float | None, bool]:
        """Seconds of one output, and whether its very settings have run."""
        shape, steps = Shape(call.pixels, call.passes), call.num_inference_steps
        computed_s, fixed_s = _at(self._computed_step_s, shape, statistic), _at(self._fixed_s, shape, statistic)
        if computed_s is None or fixed_s is None:
            return None, False
        settings = call.cache.settings
        if settings is None:
            return fixed_s + steps * computed_s, True
        reused = self._reused_at_least(call, settings)
        reused_s = self._reused_seconds(settings.digest(), shape, statistic)
        if reused is None or (reused and reused_s is None):
            return fixed_s + steps * computed_s, False
        return fixed_s + (steps - reused) * computed_s + reused * (reused_s or 0.0), True

    def _reused_at_least(self, call: ImageCall, settings: CacheSettings) -> float | None:
        """Return the least reused steps of these settings: as in fewer steps that ran, in proportion to more.

        Those of other schedulers do not count: the cache compares other steps there.
        """
        kind, steps, passes = _kind(call, settings), call.num_inference_steps, call.passes
        found = self._reused_steps.nearest(lambda key: abs(key[2] - steps) if key[:2] == (kind, passes) else None)
        if found is None:
            return None
        (_, _, ran), counts = found
        may_reuse = sum(1 for threshold in settings.max_difference_by_step(steps, passes=passes) if threshold > 0)
        return min(min(counts) * min(1.0, steps / ran), may_reuse)

    def _reused_seconds(self, digest: str, shape: Shape, statistic: Statistic) -> float | None:
        found = self._reused_step_s.nearest(lambda key: _ratio(key[1], shape) if key[0] == digest else None)
        if found is None:
            return None
        (_, known), seconds = found
        return statistic(seconds) * _factor(known, shape)


def _digest(settings: CacheSettings | None) -> str:
    return "" if settings is None else settings.digest()


def _kind(call: ImageCall, settings: CacheSettings) -> Kind:
    return settings.digest(), call.sampler.name if call.sampler else None


def _at(observations: Observations[Shape], shape: Shape, statistic: Statistic) -> float | None:
    """The statistic for a shape; for one that has not run, that of the nearest, in proportion to pixels and passes."""
    found = observations.nearest(lambda known: _ratio(known, shape))
    if found is None:
        return None
    known, seconds = found
    return statistic(seconds) * _factor(known, shape)


def _ninth_decile(numbers: deque[float]) -> float:
    if len(numbers) == 1:
        return numbers[0]
    return statistics.quantiles(numbers, n=10, method="inclusive")[-1]


def _sum(seconds: Iterable[float | None]) -> float | None:
    """The sum; None where any is unknown."""
    total = 0.0
    for each in seconds:
        if each is None:
            return None
        total += each
    return total


def _factor(known: Shape, wanted: Shape) -> float:
    """Return the factor by which a step takes longer, 1 at least: the part that does not shrink is unknown."""
    return max(1.0, wanted.work / known.work)


def _ratio(known: Shape, wanted: Shape) -> float:
    """Return the distance of two shapes' work as a ratio from 1; 0 for the very same shape."""
    if known == wanted:
        return 0.0
    return max(wanted.work, known.work) / min(wanted.work, known.work)
