"""How long things take here, learnt from what has run: seconds of a computed and of a reused step, and how many steps
each setting reuses. Written by the encoders' threads, read by any.
"""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass
from typing import TypeVar

from cache_dit_serving.cache_settings import CacheSettings
from cache_dit_serving.pipeline.arguments import Drawing, GenerationCall
from cache_dit_serving.pipeline.runner import DrawnImage
from cache_dit_serving.schemas import StepRate

K = TypeVar("K")
V = TypeVar("V")

WINDOW = 20
"""Newest observations that count: follows a change of load within a few pictures, and forgets a single slow one."""


@dataclass(frozen=True, order=True)
class Shape:
    """What the time of a step depends on."""

    pixels: int
    passes: int
    """Forward passes a step: 2 where guidance takes one of its own."""


@dataclass(frozen=True)
class Estimate:
    seconds: float
    known: bool
    """Whether these very settings have run; otherwise every step is taken to be computed."""


class Rates:
    """Medians over the newest observations, by shape and by cache settings."""

    def __init__(self) -> None:
        self._computed_step_s: dict[Shape, deque[float]] = {}
        self._reused_step_s: dict[str, dict[Shape, deque[float]]] = {}
        self._reused_steps: dict[tuple[str, int], dict[int, deque[int]]] = {}
        """By settings and forward passes, then by num_inference_steps."""
        self._fixed_s: dict[Shape, deque[float]] = {}

    def learn(self, call: GenerationCall, drawing: Drawing, image: DrawnImage, encode_s: float = 0.0) -> None:
        """Take in one image, with the seconds that encoding it took."""
        shape, report = _shape(call), image.cache
        _note(self._fixed_s, shape, image.encode_prompt_s + image.decode_s + encode_s)
        if drawing.cache.settings is None:
            _note(self._computed_step_s, shape, image.denoise_s / report.steps)
            return
        digest = drawing.cache.settings.digest()
        _note(self._reused_steps.setdefault((digest, shape.passes), {}), report.steps, report.cached_steps)
        if image.cached_steps_s is None:
            return
        if report.computed_steps:
            _note(self._computed_step_s, shape, (image.denoise_s - image.cached_steps_s) / report.computed_steps)
        if report.cached_steps:
            _note(self._reused_step_s.setdefault(digest, {}), shape, image.cached_steps_s / report.cached_steps)

    def estimate(self, call: GenerationCall) -> Estimate:
        """Seconds that a call will take once it is its turn; 1 s where nothing has run yet."""
        parts = [self._image(call, drawing) for drawing in call.drawings]
        return Estimate(sum(part.seconds for part in parts), all(part.known for part in parts))

    def by_shape(self) -> list[StepRate]:
        """What has been learnt of each size that ran."""
        return [
            StepRate(
                pixels=shape.pixels,
                forward_passes=shape.passes,
                computed_step_s=round(statistics.median(list(seconds)), 6),
                fixed_s=round(statistics.median(list(self._fixed_s[shape])), 6),
                observations=len(seconds),
            )
            for shape, seconds in sorted(self._computed_step_s.items())
        ]

    def _image(self, call: GenerationCall, drawing: Drawing) -> Estimate:
        shape, steps = _shape(call), call.num_inference_steps
        computed_s = _at(self._computed_step_s, shape)
        fixed_s = _at(self._fixed_s, shape)
        if computed_s is None or fixed_s is None:
            return Estimate(1.0, known=False)
        settings = drawing.cache.settings
        if settings is None:
            return Estimate(fixed_s + steps * computed_s, known=True)
        digest = settings.digest()
        reused_s = _at(self._reused_step_s.get(digest, {}), shape)
        reused = self._reused_at_least(settings, steps, shape.passes)
        if reused is None or (reused and reused_s is None):
            return Estimate(fixed_s + steps * computed_s, known=False)
        return Estimate(fixed_s + (steps - reused) * computed_s + reused * (reused_s or 0.0), known=True)

    def _reused_at_least(self, settings: CacheSettings, steps: int, passes: int) -> float | None:
        """Steps of so many that these settings reuse at least: as in fewer steps that ran, in proportion to more."""
        counts = self._reused_steps.get((settings.digest(), passes))
        if not counts:
            return None
        nearest = min(list(counts), key=lambda ran: abs(ran - steps))
        may_reuse = sum(1 for threshold in settings.reach(steps) if threshold > 0)
        return min(min(list(counts[nearest])) * min(1.0, steps / nearest), may_reuse)


def _shape(call: GenerationCall) -> Shape:
    return Shape(call.pixels, 2 if call.separate_cfg else 1)


def _note(observations: dict[K, deque[V]], key: K, value: V) -> None:
    observations.setdefault(key, deque(maxlen=WINDOW)).append(value)


def _at(observations: dict[Shape, deque[float]], shape: Shape) -> float | None:
    """The median for a shape; for one that has not run, that of the nearest, in proportion to pixels and passes."""
    if not observations:
        return None
    if shape in observations:
        return statistics.median(list(observations[shape]))
    nearest = min(list(observations), key=lambda known: _ratio(known, shape))
    factor = shape.pixels / nearest.pixels * shape.passes / nearest.passes
    return statistics.median(list(observations[nearest])) * max(factor, 0.0)


def _ratio(known: Shape, wanted: Shape) -> float:
    work, target = known.pixels * known.passes, wanted.pixels * wanted.passes
    return max(work, target) / min(work, target)
