"""Report of a benchmark: its parts, which become Markdown and one HTML page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from cache_dit_serving.measure.load.remarks import remarks
from cache_dit_serving.measure.load.results import BenchResult, PointResult, Quantity
from cache_dit_serving.measure.page.axes import number
from cache_dit_serving.measure.page.bars import Bar, stacked_bars
from cache_dit_serving.measure.page.document import page
from cache_dit_serving.measure.page.markdown import markdown
from cache_dit_serving.measure.page.parts import Figure, Heading, Paragraph, Part, Table
from cache_dit_serving.measure.page.plots import Point, Series, plot

INTERVALS = "In brackets: 95 % confidence intervals by bootstrap. >: too few requests to bound it from above."


def as_markdown(result: BenchResult) -> str:
    """Return the report as Markdown."""
    return markdown(_title(result), report_of(result))


def as_html(result: BenchResult) -> str:
    """Return the report as one self-contained HTML page."""
    return page(_title(result), report_of(result), foot=f"cache-dit-serving {result.tool_version}, {result.begun_at}")


def report_of(result: BenchResult) -> list[Part]:
    """Return the parts of the report."""
    parts: list[Part] = [Paragraph(text, note=True) for text in remarks(result)]
    if result.points:
        parts += [_latency_table(result.points), Paragraph(INTERVALS)]
        parts += _plots(result.points)
        parts += [Heading("Stages"), _stage_table(result.points), _stage_bars(result.points)]
        parts += [*_kinds(result.points), *_errors(result.points)]
    return [*parts, Heading("Conditions"), _conditions(result)]


def _title(result: BenchResult) -> str:
    return f"Load on {result.server.get('model') or result.url}"


def spelt(quantity: Quantity | None, unit: str = "", scale: float = 1) -> str:
    """Return a quantity, times `scale`, with its interval."""
    if quantity is None:
        return "-"
    value, low, top = (number(scale * each) for each in (quantity.value, quantity.low, quantity.high))
    return f"{value}{unit} ({low} to {top if quantity.bounded else f'>{top}'})"


def _latency_table(points: Sequence[PointResult]) -> Table:
    names = ("p50", "p90", "p95", "p99")
    columns = ["load", "requests", "errors", "outputs/s", *(f"{name}, s" for name in names), "offered / achieved, 1/s"]
    rows = [
        [
            point.load.label(),
            str(point.requests),
            str(point.requests - point.succeeded),
            spelt(point.throughput),
            *(spelt(point.latency.get(name)) for name in names),
            f"{_rate(point.offered_rate)} / {_rate(point.achieved_rate)}",
        ]
        for point in points
    ]
    return Table(columns, rows, "Throughput, and latency from the intended start")


def _rate(rate: float | None) -> str:
    return "-" if rate is None else number(rate)


def _plots(points: Sequence[PointResult]) -> list[Part]:
    drawn = [point for point in points if point.latency]
    if not drawn:
        return []
    x = "users" if drawn[0].load.kind == "closed" else "offered requests/s"

    def series(name: str, quantities: Sequence[tuple[PointResult, Quantity | None]]) -> Series:
        places = [
            Point(point.load.value, one.value, (one.low, one.high), label=f"{name}, {point.load.label()}")
            for point, one in quantities
            if one is not None
        ]
        return Series(name, places)

    latency = [series(name, [(point, point.latency[name]) for point in drawn]) for name in ("p50", "p90", "p99")]
    throughput = series("outputs/s", [(point, point.throughput) for point in drawn])
    several = len(drawn) > 1
    return [
        Figure(plot(latency, x=x, y="latency, s", title="Latency over load", x_log=several), "Latency over load"),
        Figure(
            plot([throughput], x=x, y="outputs/s", title="Throughput over load", x_log=several), "Throughput over load"
        ),
    ]


def _stage_names(points: Sequence[PointResult]) -> list[str]:
    return list(dict.fromkeys(name for point in points for name in point.stages))


def _stage_table(points: Sequence[PointResult]) -> Table:
    names = _stage_names(points)
    rows = [
        [point.load.label(), *(spelt(point.stages.get(name), scale=1000) for name in names), _cache(point)]
        for point in points
    ]
    columns = ["load", *(f"{name}, ms" for name in names), "reused steps"]
    return Table(columns, rows, "Mean milliseconds by stage; rest: HTTP, network and the client's own time")


def _cache(point: PointResult) -> str:
    if not point.steps or point.cached_steps is None:
        return "-"
    return f"{point.cached_steps / point.steps:.1%} of {point.steps:,}"


def _stage_bars(points: Sequence[PointResult]) -> Figure:
    names = _stage_names(points)
    bars = [
        Bar(point.load.label(), [point.stages[name].value if name in point.stages else 0.0 for name in names])
        for point in points
    ]
    return Figure(stacked_bars(names, bars, x="load", y="mean seconds", title="Stages"), "Mean seconds by stage")


def _kinds(points: Sequence[PointResult]) -> list[Part]:
    """Return a table of the mix, if it has several entries."""
    rows = []
    for point in points:
        for kind in sorted({sample.kind for sample in point.samples}):
            good = [each for each in point.samples if each.kind == kind and each.error is None]
            total = sum(each.kind == kind for each in point.samples)
            times = sorted(each.latency for each in good)
            middle = number(times[len(times) // 2]) if times else "-"
            rows.append([point.load.label(), kind, str(total), str(total - len(good)), middle])
    if len({row[1] for row in rows}) < 2:
        return []
    return [Heading("Mix"), Table(["load", "entry", "requests", "errors", "median latency, s"], rows)]


def _errors(points: Sequence[PointResult]) -> list[Part]:
    rows = []
    for point in points:
        for error in point.errors:
            rows.append([point.load.label(), error.kind, str(error.count), error.message or ""])
        if (retry := point.retry_after) is not None:
            told = f"{number(retry.least_s)} to {number(retry.most_s)} s"
            rows.append([point.load.label(), "of these with Retry-After", str(retry.count), told])
    return [Heading("Errors"), Table(["load", "error", "requests", ""], rows, text=True)] if rows else []


SERVER_KEYS = (
    "model",
    "pipeline_class",
    "configuration",
    "device",
    "dtype",
    "attention_backend",
    "versions",
    "quantization",
    "parallelism",
    "offload",
    "loras",
    "cache",
)
"""Keys of a server's description that the report shows. The results file has all of them."""


def _conditions(result: BenchResult) -> Table:
    shown = {"server": result.url, "begun": result.begun_at, "warm-up": f"{result.warm_up} requests"}
    server = {f"server: {name}": _text(result.server[name]) for name in SERVER_KEYS if result.server.get(name)}
    settings = {f"setting: {name}": _text(value) for name, value in result.settings.items()}
    client = {f"client: {name}": _text(value) for name, value in result.machine.items()}
    everything: Mapping[str, str] = {**shown, **server, **settings, **client}
    return Table(["", ""], [[name, value] for name, value in everything.items()], text=True)


def _text(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 400 else text[:400] + "..."
