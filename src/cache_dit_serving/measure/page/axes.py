"""Axes of a plot: ticks at round numbers, and places of values in the drawing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH, HEIGHT = 720, 380
"""Size of a plot, units of the drawing."""
LEFT, RIGHT, TOP, BOTTOM = 72, 16, 16, 52
"""Margins of a plot, which hold the ticks and the names of the axes."""
SERIES = 8
"""Colours and markers of series; the ninth series has those of the first again."""


@dataclass(frozen=True, slots=True)
class Scale:
    """Map from values to places, straight or by logarithm."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        at = math.log(max(value, self.low)) if self.log else value
        return round(self.start + (min(max(at, low), high) - low) / (high - low) * (self.end - self.start), 2)


def scale_of(values: Sequence[float], start: float, end: float, *, zero: bool = False, log: bool = False) -> Scale:
    """Return the scale that shows all values between two places.

    Args:
        zero: the scale begins at 0.
        log: places follow the logarithm, if all values are above 0.
    """
    low, high = min(values, default=0.0), max(values, default=1.0)
    if log and low > 0:
        return _log_scale(low, high, start, end)
    low = min(low, 0.0) if zero else low
    if high <= low:
        low, high = (low, low + 1) if zero else (low - 0.5, high + 0.5)
    step = _round_step((high - low) / 5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(index * step for index in range(first, last + 1))
    return Scale(ticks[0], ticks[-1], start, end, ticks)


def _log_scale(low: float, high: float, start: float, end: float) -> Scale:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    candidates = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5)]
    below = [tick for tick in candidates if tick <= low * 1.0001][-1]
    above = next((tick for tick in candidates if tick >= high * 0.9999 and tick > below), below * 10)
    ticks = [tick for tick in candidates if below <= tick <= above]
    return Scale(
        below, above, start, end, tuple(ticks if len(ticks) <= 10 else ticks[:: len(ticks) // 8 + 1]), log=True
    )


def _round_step(least: float) -> float:
    power: float = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= least * 0.999)


def number(value: float) -> str:
    """Return a value with three significant digits, and thousands apart."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{min(digits, 9)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def x_axis(scale: Scale, name: str) -> Markup:
    """Draw the lower axis: ticks, their numbers and its name."""
    bottom = HEIGHT - BOTTOM
    ticks = Markup("").join(
        Markup(
            '<line class="tick" x1="{0}" x2="{0}" y1="{1}" y2="{2}"/><text x="{0}" y="{3}" class="middle">{4}</text>'
        ).format(scale(tick), bottom, bottom + 5, bottom + 19, number(tick))
        for tick in scale.ticks
    )
    return ticks + axis_name(name)


def axis_name(name: str) -> Markup:
    """Draw the name of the lower axis."""
    return Markup('<text x="{}" y="{}" class="middle name">{}</text>').format(
        (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, name
    )


def y_axis(scale: Scale, name: str) -> Markup:
    """Draw the left axis: lines across the plot, their numbers and its name."""
    lines = Markup("").join(
        Markup(
            '<line class="grid" x1="{0}" x2="{1}" y1="{2}" y2="{2}"/><text x="{3}" y="{4}" class="end">{5}</text>'
        ).format(LEFT, WIDTH - RIGHT, scale(tick), LEFT - 8, scale(tick) + 4, number(tick))
        for tick in scale.ticks
    )
    middle = (TOP + HEIGHT - BOTTOM) / 2
    return lines + Markup('<text x="16" y="{0}" class="middle name" transform="rotate(-90 16 {0})">{1}</text>').format(
        middle, name
    )


def shown_on_hover(drawing: Markup, text: str, x: float, y: float) -> Markup:
    """Return a drawing whose text appears while a pointer or the keyboard is on it, without a script."""
    right = x > WIDTH * 0.6
    return Markup(
        '<g class="mark" tabindex="0" role="img" aria-label="{0}">{1}'
        '<text class="tip {2}" x="{3}" y="{4}">{0}</text></g>'
    ).format(text, drawing, "end" if right else "start", x + (-10 if right else 10), max(y - 10, TOP + 12))


def plot_of(drawing: Markup, title: str) -> Markup:
    """Return the SVG of a plot. `title` names it for readers that do not see it."""
    return Markup('<svg viewBox="0 0 {} {}" role="group" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, title, drawing
    )


def legend(names: Sequence[str]) -> Markup:
    """Return the legend of series, which stands below its plot."""
    entries = Markup("").join(
        Markup('<li><svg viewBox="0 0 14 14" class="key" aria-hidden="true"><g class="s{}">{}</g></svg>{}</li>').format(
            index % SERIES, marker(index, 7, 7), name
        )
        for index, name in enumerate(names)
    )
    return Markup('<ul class="legend">{}</ul>').format(entries)


def marker(index: int, x: float, y: float) -> Markup:
    """Draw the marker of a series: its shape tells it apart where colours do not."""
    shapes = (
        Markup('<circle class="dot" cx="{0}" cy="{1}" r="5"/>').format(x, y),
        _polygon((x - 4.5, y - 4.5), (x + 4.5, y - 4.5), (x + 4.5, y + 4.5), (x - 4.5, y + 4.5)),
        _polygon((x, y - 6), (x + 5.5, y + 4), (x - 5.5, y + 4)),
        _polygon((x, y - 6), (x + 6, y), (x, y + 6), (x - 6, y)),
    )
    return shapes[index % len(shapes)]


def _polygon(*points: tuple[float, float]) -> Markup:
    return Markup('<polygon class="dot" points="{}"/>').format(" ".join(f"{x:g},{y:g}" for x, y in points))
