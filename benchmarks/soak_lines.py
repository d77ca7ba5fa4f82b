"""The lines of a soak: their bounds, its table and its plot."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from cache_dit_serving.measure.page.axes import HEIGHT, WIDTH
from cache_dit_serving.measure.page.plots import Point, Series, plot


@dataclass(frozen=True, slots=True)
class Sample:
    """State of all processes of the server, and of what they leave, at one time."""

    at_s: float
    """Since the traffic began."""
    memory_mb: float
    threads: float
    descriptors: float
    temporary_files: float
    rows: float
    output_files: float
    """Files in the folder of outputs, the store among them."""


@dataclass(frozen=True, slots=True)
class Line:
    """One promise, its figure and its bound; it fails above the bound."""

    name: str
    measured: float
    bound: float
    unit: str = ""

    @property
    def holds(self) -> bool:
        return self.measured <= self.bound


KEPT_MB, OTHER_MB = 64.0, 16.0
"""Free memory that glibc 2.36 keeps at the end of an arena, and what else may grow.

A freed block raises the size from which blocks are mapped for themselves to its own, 32 MiB at most. glibc gives the
end of an arena back once twice that size is free (mallopt(3), M_MMAP_THRESHOLD and M_TRIM_THRESHOLD).
"""
GROWTH = {
    "memory_mb": ("memory of all processes, growth", KEPT_MB + OTHER_MB, "MB"),
    "threads": ("threads, growth", 10.0, ""),
    "descriptors": ("open descriptors, growth", 30.0, ""),
    "temporary_files": ("temporary files, growth", 20.0, ""),
}
"""Name, bound and unit of each figure of a sample that has to stay flat."""


OTHER_FILES = 20
"""Files beside those of outputs in their folder: the store, its journal, the signing key, half-written ones."""


def growth(values: Sequence[float]) -> float:
    """Return the median of the last third less that of the middle third; the first third warms up."""
    third = len(values) // 3
    if not third:
        raise ValueError(f"{len(values)} samples are too few: three at least")
    return statistics.median(values[-third:]) - statistics.median(values[third : 2 * third])


def flat_lines(lives: Sequence[Sequence[Sample]], kept_rows: int) -> list[Line]:
    """Return the lines of what stays flat: the greatest growth in any life of the server.

    Args:
        lives: samples from each start of the server on.
        kept_rows: rows that the store may hold; each has one output.
    """
    lines = [
        Line(name, max(growth([getattr(sample, figure) for sample in life]) for life in lives), bound, unit)
        for figure, (name, bound, unit) in GROWTH.items()
    ]
    samples = [sample for life in lives for sample in life]
    return [
        *lines,
        Line("rows of the store, the most", max(sample.rows for sample in samples), kept_rows),
        Line("files of outputs, the most", max(sample.output_files for sample in samples), kept_rows + OTHER_FILES),
    ]


def percentile_99(values: Sequence[float]) -> float:
    """Return the 99th percentile; infinity for fewer than two values."""
    return statistics.quantiles(values, n=100)[-1] if len(values) > 1 else float("inf")


def table(lines: Sequence[Line]) -> str:
    """Return the Markdown table of lines."""
    rows = (
        f"| {line.name} | {_figure(line.measured, line.unit)} | at most {_figure(line.bound, line.unit)} "
        f"| {'holds' if line.holds else '**fails**'} |"
        for line in lines
    )
    return "\n".join(["| | measured | bound | |", "|---|---|---|---|", *rows])


def drawn(samples: Sequence[Sample]) -> str:
    """Return an SVG file: each figure over time, as a share of its greatest value."""
    names = {figure: figure.removesuffix("_mb").replace("_", " ") for figure in (*GROWTH, "rows", "output_files")}
    series = []
    for figure, name in names.items():
        values = [getattr(sample, figure) for sample in samples]
        most = max(values) or 1.0
        points = [Point(s.at_s, 100 * value / most) for s, value in zip(samples, values, strict=True)]
        series.append(Series(f"{name} (most: {max(values):.0f})", points))
    drawing = str(plot(series, x="seconds", y="share of the greatest, %", title="Soak"))
    body = drawing[drawing.index(">") + 1 : drawing.index("</svg>")]
    keys = "".join(
        f'<g class="s{index}"><text x="12" y="{HEIGHT + 20 * (index + 1)}" style="fill:var(--c)">{one.name}</text></g>'
        for index, one in enumerate(series)
    )
    style = resources.files("cache_dit_serving.measure.page").joinpath("page.css").read_text(encoding="utf-8")
    size = f"{WIDTH} {HEIGHT + 20 * (len(series) + 1)}"
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}"><style>{style}</style>{body}{keys}</svg>\n'


def _figure(value: float, unit: str) -> str:
    return f"{value:,.1f} {unit}" if unit else f"{value:,.0f}"
