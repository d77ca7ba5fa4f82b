"""Results of a benchmark as CSV: a row for each load, for spreadsheets and data frames."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from cache_dit_serving.measure.load.results import PERCENTILES, BenchResult, PointResult, Quantity

COUNTS = ("requests", "succeeded", "outputs", "duration_s", "offered_rate", "achieved_rate", "steps", "cached_steps")
"""Columns of single numbers, by the names of :class:`PointResult`."""


def as_csv(result: BenchResult) -> str:
    """Return a table with a header. A figure that a load lacks is an empty cell; times are seconds."""
    stages = list(dict.fromkeys(name for point in result.points for name in point.stages))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_columns(stages))
    writer.writerows(_row(point, stages) for point in result.points)
    return text.getvalue()


def _columns(stages: Sequence[str]) -> list[str]:
    figures = ["throughput", *(f"latency_{name}_s" for name in PERCENTILES)]
    ends = [f"{name}{end}" for name in figures for end in ("", "_low", "_high")]
    return ["kind", "load", *COUNTS, *ends, "latency_mean_s", *(f"stage_{name}_s" for name in stages)]


def _row(point: PointResult, stages: Sequence[str]) -> list[object]:
    figures = [point.throughput, *(point.latency.get(name) for name in PERCENTILES)]
    ends = [end for each in figures for end in _ends(each)]
    means = [point.latency.get("mean"), *(point.stages.get(name) for name in stages)]
    counts = [getattr(point, name) for name in COUNTS]
    return [point.load.kind, point.load.value, *counts, *ends, *(each and each.value for each in means)]


def _ends(quantity: Quantity | None) -> tuple[float | None, float | None, float | None]:
    """Return a value and its interval; an end that too few requests leave open is None."""
    if quantity is None:
        return None, None, None
    return quantity.value, quantity.low, quantity.high if quantity.bounded else None
