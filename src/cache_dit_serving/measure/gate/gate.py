"""Drawing of a gate: each prompt and seed without a cache, then at each speed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

from cache_dit_serving.errors import ServingError
from cache_dit_serving.measure.gate.verdict import Verdict, judge
from cache_dit_serving.measure.gate.wanted import Wanted
from cache_dit_serving.measure.search.drawer import Drawer, Interrupted
from cache_dit_serving.measure.search.floors import in_values
from cache_dit_serving.measure.search.measures import OF_KIND
from cache_dit_serving.measure.search.measuring import Clock, Measuring, in_words
from cache_dit_serving.measure.search.points import Case, Point
from cache_dit_serving.measure.search.samples import Samples


class Stopped(Exception):
    """The user has interrupted the gate. The message says how far it came."""


class Gate:
    """Speeds of a loaded model, drawn on prompts and seeds and held to their floors."""

    def __init__(
        self,
        drawer: Drawer,
        cases: Sequence[Case],
        wanted: Wanted,
        *,
        prompts_are: str = "the user's",
        interrupted: Callable[[], bool] = lambda: False,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        """
        Args:
            interrupted: True once the user has interrupted.
            say: takes the progress in words, after each output.
        """
        self._drawer, self._cases, self._wanted, self._say = drawer, cases, wanted, say
        self._prompts_are = prompts_are
        self._samples = Samples()
        self._measuring = Measuring(drawer, self._samples, cases, drawn=self._after_draw)
        # Two speeds may be one point.
        self._points = list({point.key: point for point in (*wanted.points.values(), *wanted.uncached)}.values())
        self._clock = Clock(time.monotonic, interrupted=interrupted)
        self._drawn, self._began = 0, time.monotonic()

    def run(self) -> Verdict:
        """Draw, and judge.

        Raises:
            Stopped: the user has interrupted.
            ServingError: the model failed, or an uncached output cannot be drawn.
        """
        try:
            failed = self._measuring.measure(self._points, self._clock.check).failed
        except Interrupted:
            raise Stopped(self._progress()) from None
        for point in self._wanted.uncached:
            if point.key in failed:
                raise ServingError(f"the floor {point.described()} cannot be drawn: {failed[point.key]}")
        subject, wanted = self._drawer.subject, self._wanted
        uncached = [self._samples.of(point) for point in wanted.uncached]
        floors = in_values(wanted.floors, uncached, OF_KIND[subject.kind][0], steps=subject.steps)
        judged = [
            judge(
                speed,
                self._samples.of(point),
                self._cases,
                floors=floors[speed],
                origin=wanted.origins[speed],
                failure=failed.get(point.key),
            )
            for speed, point in wanted.points.items()
        ]
        reference_s = statistics.median(self._measuring.reference_s.values())
        return Verdict(subject, self._cases, self._prompts_are, reference_s, judged)

    def _after_draw(self, point: Point) -> None:
        self._drawn += 1
        left = (self._total - self._drawn) * (time.monotonic() - self._began) / self._drawn
        self._say(f"{self._progress()}, about {in_words(left)} left, now {point.described()}")

    def _progress(self) -> str:
        return f"{self._drawn} of {self._total} outputs"

    @property
    def _total(self) -> int:
        return len(self._cases) * (1 + len(self._points))
