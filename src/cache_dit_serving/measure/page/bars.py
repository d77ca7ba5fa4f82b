"""Stacked bars: parts of a whole, side by side."""

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
    axis_name,
    legend,
    number,
    plot_of,
    scale_of,
    shown_on_hover,
    y_axis,
)

_WIDEST = 90
"""Width of a bar at most, units of the drawing."""


@dataclass(frozen=True, slots=True)
class Bar:
    """Bar of one category: the values of its parts from below, not negative."""

    category: str
    parts: Sequence[float]


def stacked_bars(parts: Sequence[str], bars: Sequence[Bar], *, x: str, y: str, title: str) -> Markup:
    """Return the SVG and legend of bars.

    Args:
        parts: names of the parts, in the order of each bar's values.
        x: name of the lower axis.
        y: name of the left axis, with its unit.
    """
    up = scale_of([sum(bar.parts) for bar in bars], HEIGHT - BOTTOM, TOP, zero=True)
    room = (WIDTH - LEFT - RIGHT) / max(1, len(bars))
    width = min(_WIDEST, room * 0.7)
    drawn, names = Markup(""), Markup("")
    for place, bar in enumerate(bars):
        middle = round(LEFT + room * (place + 0.5), 2)
        below = 0.0
        for index, (part, value) in enumerate(zip(parts, bar.parts, strict=True)):
            top, bottom = up(below + value), up(below)
            rectangle = Markup('<rect class="part s{}" x="{}" y="{}" width="{}" height="{}"/>').format(
                index % SERIES, round(middle - width / 2, 2), top, round(width, 2), round(max(bottom - top, 0), 2)
            )
            text = f"{bar.category}: {part} {number(value)}"
            drawn += shown_on_hover(rectangle, text, middle, (top + bottom) / 2)
            below += value
        names += Markup('<text x="{}" y="{}" class="middle">{}</text>').format(
            middle, HEIGHT - BOTTOM + 19, bar.category
        )
    return plot_of(y_axis(up, y) + names + axis_name(x) + drawn, title) + legend(parts)
