"""Comparison of two benchmarks: which differences are real, and which are noise."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cache_dit_serving.errors import ConfigError
from cache_dit_serving.findings import findings_of
from cache_dit_serving.measure.load.outcome import Outcome
from cache_dit_serving.measure.load.report import SERVER_KEYS
from cache_dit_serving.measure.load.results import BenchResult, PointResult, completion_gaps, stage_times
from cache_dit_serving.measure.page.axes import number
from cache_dit_serving.measure.page.document import page
from cache_dit_serving.measure.page.markdown import markdown
from cache_dit_serving.measure.page.parts import Heading, Paragraph, Part, Table
from cache_dit_serving.measure.statistics import (
    CONFIDENCE,
    Difference,
    difference,
    difference_of_means,
    holm,
    share_test,
)

MAX_FILE_BYTES = 256 << 20
"""Length of a results file."""
LEAST_STAGE_S = 0.001
"""Longest time of a stage from which it is compared, seconds."""
EXPLAINED = (
    "A difference is real if its 95 % confidence interval excludes 1 and its probability, adjusted for the number of "
    "comparisons (Holm), is at most 5 %. Everything else is noise as far as these measurements show; more requests may "
    "show more. Points are compared where both files have the same load."
)


class Compared(BaseModel):
    """One figure of two benchmarks."""

    model_config = ConfigDict(frozen=True)

    load: str
    figure: str
    a: float
    b: float
    ratio: float | None = Field(description="`b` over `a`; null if `a` is 0.")
    low: float | None
    high: float | None
    p_value: float = Field(description="Adjusted for the number of comparisons.")
    real: bool
    better: bool | None = Field(description="True if `b` is better than `a`; null: a figure without a better side.")


class Comparison(BaseModel):
    """Comparison of two results files."""

    schema_version: Literal[1] = 1
    conditions: dict[str, tuple[str, str]] = Field(description="Conditions that differ.")
    left_out: list[str] = Field(description="Loads that one file has alone.")
    compared: list[Compared]


def read_result(path: Path) -> BenchResult:
    """Return a results file.

    Raises:
        ConfigError: it cannot be read, or is none.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(f"--compare: {path} is longer than {MAX_FILE_BYTES:,} bytes")
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"--compare: {path} cannot be read: {error.strerror}") from error
    try:
        return BenchResult.model_validate_json(content)
    except ValidationError as error:
        finding = findings_of(error)[0]
        reason = finding.message or "is not known"
        raise ConfigError(f"--compare: {path} is no results file of `bench`: {finding.field}: {reason}") from error


def compare(a: BenchResult, b: BenchResult) -> Comparison:
    """Return the comparison of two benchmarks, by their requests."""
    points_a, points_b = ({point.load.label(): point for point in each.points} for each in (a, b))
    shared = [label for label in points_a if label in points_b]
    rows = [row for label in shared for row in _figures(label, points_a[label], points_b[label])]
    adjusted = holm([found.p_value for _, _, found, _ in rows])
    return Comparison(
        conditions=_conditions(a, b),
        left_out=sorted(set(points_a) ^ set(points_b)),
        compared=[
            _compared(label, figure, found, p_value, less)
            for (label, figure, found, less), p_value in zip(rows, adjusted, strict=True)
        ],
    )


Row = tuple[str, str, Difference, bool | None]
"""Load, figure, its difference, and if less of it is better."""


def _figures(label: str, a: PointResult, b: PointResult) -> Iterator[Row]:
    good_a, good_b = ([sample for sample in point.samples if sample.error is None] for point in (a, b))
    yield label, "share of errors", _shares(a, b), True
    if not good_a or not good_b:
        return
    gaps_a, gaps_b = completion_gaps(a.samples), completion_gaps(b.samples)
    if gaps_a and gaps_b:
        yield label, "seconds per success", difference_of_means(gaps_a, gaps_b, in_order=True), True
    latency_a, latency_b = ([sample.latency for sample in good] for good in (good_a, good_b))
    for name, q in (("p50", 0.5), ("p90", 0.9)):
        yield label, f"latency {name}, s", difference(latency_a, latency_b, q, in_order=True), True
    stages_a, stages_b = ([stage_times(sample) for sample in good] for good in (good_a, good_b))
    for name in dict.fromkeys(name for times in (*stages_a, *stages_b) for name in times):
        values_a, values_b = ([times.get(name, 0.0) for times in stages] for stages in (stages_a, stages_b))
        if max(*values_a, *values_b) > LEAST_STAGE_S:
            yield label, f"{name}, median s", difference(values_a, values_b, in_order=True), True
    shares_a, shares_b = _reused_shares(good_a), _reused_shares(good_b)
    if shares_a and shares_b:
        yield label, "share of reused steps", difference_of_means(shares_a, shares_b), None


def _reused_shares(good: Sequence[Outcome]) -> list[float]:
    return [each.cached_steps / each.steps for each in good if each.steps and each.cached_steps is not None]


def _shares(a: PointResult, b: PointResult) -> Difference:
    failed_a, failed_b = a.requests - a.succeeded, b.requests - b.succeeded
    share_a, share_b = failed_a / a.requests, failed_b / b.requests
    p_value = share_test(failed_a, a.requests, failed_b, b.requests)
    return Difference(
        a=share_a,
        b=share_b,
        change=share_b - share_a,
        ratio=share_b / share_a if share_a else None,
        low=None,
        high=None,
        p_value=p_value,
        real=p_value <= 1 - CONFIDENCE,
        count_a=a.requests,
        count_b=b.requests,
    )


def _compared(label: str, figure: str, found: Difference, p_value: float, less: bool | None) -> Compared:
    return Compared(
        load=label,
        figure=figure,
        a=found.a,
        b=found.b,
        ratio=found.ratio,
        low=found.low,
        high=found.high,
        p_value=p_value,
        real=found.real and p_value <= 1 - CONFIDENCE + 1e-12,
        better=None if less is None else (found.change < 0) == less,
    )


def _conditions(a: BenchResult, b: BenchResult) -> dict[str, tuple[str, str]]:
    def told(result: BenchResult) -> dict[str, object]:
        # The client's load average changes with every run.
        server = {f"server {name}": result.server.get(name) for name in SERVER_KEYS}
        client = {f"client {name}": value for name, value in result.machine.items() if name != "load_average"}
        return {**server, **{f"setting {name}": value for name, value in result.settings.items()}, **client}

    told_a, told_b = told(a), told(b)
    names = dict.fromkeys([*told_a, *told_b])
    differing = [name for name in names if told_a.get(name) != told_b.get(name)]
    return {name: (_spelt(told_a.get(name)), _spelt(told_b.get(name))) for name in differing}


def _spelt(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)[:200]


def comparison_parts(comparison: Comparison) -> list[Part]:
    """Return the parts of the report."""
    real = [row for row in comparison.compared if row.real]
    noise = [row for row in comparison.compared if not row.real]
    parts: list[Part] = [Paragraph(EXPLAINED)]
    if comparison.conditions:
        rows = [[name, *values] for name, values in comparison.conditions.items()]
        parts += [Heading("Conditions that differ"), Table(["", "A", "B"], rows, text=True)]
    if comparison.left_out:
        parts.append(Paragraph(f"In one file alone: {', '.join(comparison.left_out)}.", note=True))
    if not comparison.compared:
        return [*parts, Paragraph("The files have no load in common.", note=True)]
    parts += [Heading("Real"), _table(real) if real else Paragraph("No difference.")]
    return [*parts, Heading("Noise"), _table(noise) if noise else Paragraph("Nothing.")]


def _table(rows: Sequence[Compared]) -> Table:
    columns = ["load", "figure", "A", "B", "B / A", "95 % interval", "p", "B is"]
    return Table(
        columns,
        [
            [
                row.load,
                row.figure,
                number(row.a),
                number(row.b),
                "-" if row.ratio is None else f"{row.ratio:.3f}",
                "-" if row.low is None or row.high is None else f"{row.low:.3f} to {row.high:.3f}",
                f"{row.p_value:.3f}",
                ("different" if row.better is None else "better" if row.better else "worse")
                if row.real
                else "the same",
            ]
            for row in rows
        ],
    )


def comparison_markdown(comparison: Comparison) -> str:
    """Return the comparison as Markdown."""
    return markdown("Comparison of two benchmarks", comparison_parts(comparison))


def comparison_html(comparison: Comparison) -> str:
    """Return the comparison as one self-contained HTML page."""
    return page("Comparison of two benchmarks", comparison_parts(comparison))
