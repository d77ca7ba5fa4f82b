"""A drawer without a model: seconds and distances are functions of the settings, so that the front is known."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np

from cache_dit_serving.caching.settings import CacheSettings
from cache_dit_serving.measure.search.drawer import CannotDraw, Drawn, Subject
from cache_dit_serving.measure.search.points import Case, Point
from cache_dit_serving.media.values import ImageOutput, MediaKind

STEPS = 20
OF_COMPUTED = 0.05
"""Seconds of a computed step; a reused one takes a tenth."""


def reuse(settings: CacheSettings, steps: int) -> int:
    """Steps that the synthetic cache reuses: the threshold's share of those after the warm-up."""
    share = 0.7 if settings.reuses_without_asking else min(0.9, settings.residual_diff_threshold)
    return round(share * max(0, steps - settings.max_warmup_steps))


def _number(case: Case, point: Point) -> int:
    """Return a number that a case and a point have in every process."""
    return zlib.crc32(f"{case}{point.key}".encode())


class Synthetic:
    """Drawer of grey pictures. The error of a picture grows with the steps that it saves.

    A step saved by the cache costs `cache_error`, one that was left out `step_error`.
    """

    def __init__(self, *, cache_error: float = 0.004, step_error: float = 0.01) -> None:
        self.cache_error = cache_error
        self.step_error = step_error
        self.drawn: list[tuple[Case, Point]] = []
        self.refused: Callable[[Point], str | None] = lambda point: None
        self.before_draw: Callable[[], None] = lambda: None
        self.unlike: Callable[[Case], float] = lambda case: 1.0
        """Factor of a case's error."""

    @property
    def subject(self) -> Subject:
        return Subject(
            name="synthetic",
            kind=MediaKind.IMAGE,
            steps=STEPS,
            least_steps=1,
            usual_steps=STEPS,
            block_lists={"transformer.blocks": 8},
            cache_types=("DBCache",),
            conditions={"device": "none"},
        )

    def draw(self, case: Case, point: Point) -> Drawn:
        self.before_draw()
        self.drawn.append((case, point))
        if (reason := self.refused(point)) is not None:
            raise CannotDraw(reason)
        reused = 0 if point.settings is None else reuse(point.settings, point.steps)
        error = (STEPS - point.steps) * self.step_error + reused * self.cache_error
        noise = 1 + 0.01 * np.sin(_number(case, point))
        pixels = np.full((16, 16, 3), 0.5)
        pixels[::2] += error * noise * self.unlike(case)
        seconds = OF_COMPUTED * (point.steps - 0.9 * reused) * (1 + 0.01 * np.cos(_number(case, point)))
        diffs = {"transformer.blocks": {step: 0.01 * step for step in range(1, point.steps)}}
        return Drawn(ImageOutput(pixels), float(seconds), reused, diffs if point.settings else {})

    def close(self) -> None:
        pass
