"""Plots of points: lines over a load, and scatters, with error bars on either axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from cache_dit_serving.measure.page.axes import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    SERIES,
    TOP,
    WIDTH,
    Scale,
    legend,
    marker,
    number,
    plot_of,
    scale_of,
    shown_on_hover,
    x_axis,
    y_axis,
)


@dataclass(frozen=True, slots=True)
class Point:
    """Value at a place, with the ends of its error bars."""

    x: float
    y: float
    y_range: tuple[float, float] | None = None
    x_range: tuple[float, float] | None = None
    label: str = ""
    """Text before its values on hover."""


@dataclass(frozen=True, slots=True)
class Series:
    """Points of one colour and marker."""

    name: str
    points: Sequence[Point]
    line: bool = True
    """False: a scatter."""


def plot(
    series: Sequence[Series],
    *,
    x: str,
    y: str,
    title: str,
    x_log: bool = False,
    y_log: bool = False,
    y_zero: bool = True,
) -> Markup:
    """Return the SVG and legend of several series.

    Args:
        x: name of the lower axis, with its unit.
        y: name of the left axis, with its unit.
        y_zero: the left axis begins at 0, unless it is logarithmic.
    """
    every = [point for one in series for point in one.points]
    xs = [value for point in every for value in (point.x, *(point.x_range or ()))]
    ys = [value for point in every for value in (point.y, *(point.y_range or ()))]
    across = scale_of(xs, LEFT + 12, WIDTH - RIGHT - 12, log=x_log)
    up = scale_of(ys, HEIGHT - BOTTOM, TOP, zero=y_zero, log=y_log)
    lines = Markup("").join(_line(one, index, across, up) for index, one in enumerate(series))
    # Marks come last: a tip lies above every line.
    marks = Markup("").join(
        _mark(point, one.name, index, (across, up), (x, y)) for index, one in enumerate(series) for point in one.points
    )
    return plot_of(y_axis(up, y) + x_axis(across, x) + lines + marks, title) + legend([one.name for one in series])


def _line(series: Series, index: int, across: Scale, up: Scale) -> Markup:
    if not series.line or len(series.points) < 2:
        return Markup("")
    places = " ".join(f"{across(point.x)},{up(point.y)}" for point in series.points)
    return Markup('<polyline class="line s{}" points="{}"/>').format(index % SERIES, places)


def _mark(point: Point, name: str, index: int, scales: tuple[Scale, Scale], axes: tuple[str, str]) -> Markup:
    across, up = scales
    x, y = across(point.x), up(point.y)
    bars = Markup("")
    if point.y_range:
        bars += _bar(x, x, up(point.y_range[0]), up(point.y_range[1]), (4, 0))
    if point.x_range:
        bars += _bar(across(point.x_range[0]), across(point.x_range[1]), y, y, (0, 4))
    text = (
        f"{point.label or name}: {axes[0]} {number(point.x)}{_range(point.x_range)}, "
        f"{axes[1]} {number(point.y)}{_range(point.y_range)}"
    )
    drawing = Markup('<g class="s{}">{}{}</g>').format(index % SERIES, bars, marker(index, x, y))
    return shown_on_hover(drawing, text, x, y)


def _bar(x1: float, x2: float, y1: float, y2: float, cap: tuple[int, int]) -> Markup:
    across, up = cap
    path = (
        f"M{x1 - across} {y1 - up}L{x1 + across} {y1 + up}M{x1} {y1}L{x2} {y2}"
        f"M{x2 - across} {y2 - up}L{x2 + across} {y2 + up}"
    )
    return Markup('<path class="error" d="{}"/>').format(path)


def _range(ends: tuple[float, float] | None) -> str:
    return f" ({number(ends[0])} to {number(ends[1])})" if ends else ""
