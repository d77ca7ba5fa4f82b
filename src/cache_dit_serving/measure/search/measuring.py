"""Measuring of points on cases, each output beside a reference of its own, so that all share the machine's speed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from cache_dit_serving.errors import ServingError
from cache_dit_serving.measure.search.drawer import CannotDraw, Drawer, Drawn, Interrupted
from cache_dit_serving.measure.search.measures import measured
from cache_dit_serving.measure.search.points import Case, Point
from cache_dit_serving.measure.search.samples import Result, Sample, Samples


class TimeOver(Exception):
    """The budget is spent."""


@dataclass
class Clock:
    """End of the work: by its budget, or by the user."""

    now: Callable[[], float]
    """Clock, seconds."""
    ends_at: float | None = None
    interrupted: Callable[[], bool] = lambda: False

    def check(self, reserve_s: float = 0.0) -> None:
        """Return if there is time left beside a reserve.

        Raises:
            Interrupted: the user has interrupted.
            TimeOver: the budget is spent.
        """
        if self.interrupted():
            raise Interrupted
        if self.ends_at is not None and self.now() + reserve_s >= self.ends_at:
            raise TimeOver


@dataclass
class Measured:
    """Points that did not reach the last case, with the reason."""

    failed: dict[str, str] = field(default_factory=dict)
    """Reason by key, of points that cannot be drawn."""
    dropped: dict[str, Point] = field(default_factory=dict)
    """Rival by key, of points without hope."""


Rivals = Callable[[Result], Result | None]
"""Function that returns the rival that leaves a result without hope, or None."""


class Measuring:
    """Draws points on one set of cases into their samples."""

    def __init__(
        self,
        drawer: Drawer,
        samples: Samples,
        cases: Sequence[Case],
        *,
        drawn: Callable[[Point], None] = lambda point: None,
        show: Callable[[Case, Point, Drawn], None] = lambda case, point, output: None,
    ) -> None:
        """
        Args:
            drawn: called after each output, for the progress.
            show: called with each output of the points that the report shows, and with their references.
        """
        self.samples = samples
        self.cases = cases
        self.reference_s: dict[int, float] = {}
        """Seconds of the newest reference of each case, by index."""
        self._drawer = drawer
        self._drawn = drawn
        self._show = show

    def measure(self, points: Sequence[Point], check: Callable[[], None], hopeless: Rivals | None = None) -> Measured:
        """Measure the points on every case that they lack, case by case in turn.

        Args:
            check: called before each output; it raises to end the measuring.
            hopeless: rule that drops a point early.

        Raises:
            Interrupted, TimeOver: by `check`; what was measured is kept.
            ServingError: the model or the server failed, or a reference cannot be drawn.
        """
        ended = Measured()
        for index, case in enumerate(self.cases):
            alive = [point for point in points if point.key not in (ended.failed.keys() | ended.dropped.keys())]
            lacking = [point for point in alive if not self.samples.has(point, index)]
            if lacking:
                turn = index % len(lacking)  # no point is always the one right after the reference
                self._measure_case(index, case, lacking[turn:] + lacking[:turn], check, ended.failed)
            if hopeless is not None:
                for point in lacking:
                    if point.key not in ended.failed and (rival := hopeless(self.samples.of(point))) is not None:
                        ended.dropped[point.key] = rival.point
        return ended

    def _measure_case(
        self, index: int, case: Case, points: Sequence[Point], check: Callable[[], None], failed: dict[str, str]
    ) -> None:
        check()
        try:
            reference = self._draw(case, Point(self._drawer.subject.steps))
        except CannotDraw as error:  # no point can be measured on this case
            raise ServingError(
                f"the reference of {case.prompt!r}, seed {case.seed}, cannot be drawn: {error}"
            ) from error
        self.reference_s[index] = reference.seconds
        for point in points:
            check()
            try:
                output = self._draw(case, point)
            except CannotDraw as error:
                failed[point.key] = str(error)
                continue
            distances = measured(output.media, reference.media)
            ratio = output.seconds / reference.seconds
            self.samples.add(point, index, Sample(ratio, output.seconds, distances, output.cached_steps))

    def _draw(self, case: Case, point: Point) -> Drawn:
        output = self._drawer.draw(case, point)
        self._show(case, point, output)
        self._drawn(point)
        return output


def labels_of(fixed: Mapping[str, Point]) -> dict[str, str]:
    """Return the labels of fixed points by their key; a point with two labels has both."""
    labels: dict[str, str] = {}
    for label, point in fixed.items():
        labels[point.key] = f"{labels[point.key]}, {label}" if point.key in labels else label
    return labels


def in_words(seconds: float) -> str:
    """Return a duration in words, such as `4 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
