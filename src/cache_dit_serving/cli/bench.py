"""`cache-dit-serving bench`: load on a running server, by its own HTTP. It imports nothing of a model."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from cache_dit_serving.cli.bench_flags import parser, plan_of
from cache_dit_serving.cli.written_files import check_writable, write_file
from cache_dit_serving.errors import ConfigError
from cache_dit_serving.measure.load.bench import Plan, measure
from cache_dit_serving.measure.load.outcome import Failed
from cache_dit_serving.measure.load.progress import Progress
from cache_dit_serving.measure.load.results import BenchResult


def main(arguments: Sequence[str]) -> int:
    """Measure, and write the results.

    Returns:
        Exit status: 0; 1 if the server does not answer or no request succeeded; 2 for an error of the user; 130 after
        Ctrl-C, once what was done is written.
    """
    parsed = parser().parse_args(arguments)
    try:
        if parsed.compare:
            return _compare(parsed)
        plan = plan_of(parsed)
        for file in (parsed.output, parsed.markdown, parsed.html, parsed.csv):
            check_writable(file)
        result = asyncio.run(_measured(plan, Progress(sys.stderr, quiet=parsed.quiet)))
        _write_report(result, parsed)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Failed as failure:
        told = f": {failure.message}" if failure.message else ""
        print(f"error: {plan.url} does not answer: {failure.kind}{told}", file=sys.stderr)
        return 1
    if result.interrupted:
        return 128 + signal.SIGINT
    return 0 if any(point.succeeded for point in result.points) else 1


async def _measured(plan: Plan, progress: Progress) -> BenchResult:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def interrupted() -> None:
        stop.set()
        loop.remove_signal_handler(signal.SIGINT)  # a second one ends the process

    loop.add_signal_handler(signal.SIGINT, interrupted)
    try:
        return await measure(plan, progress, stop)
    finally:
        loop.remove_signal_handler(signal.SIGINT)


def _write_report(result: BenchResult, parsed: argparse.Namespace) -> None:
    from cache_dit_serving.measure.load.report import as_html, as_markdown
    from cache_dit_serving.measure.load.rows import as_csv

    # First the results: a report can be made again from them.
    write_file(parsed.output, result.model_dump_json(indent=1) + "\n")
    write_file(parsed.html, as_html(result) if parsed.html else "")
    write_file(parsed.csv, as_csv(result) if parsed.csv else "")
    _print_or_write(parsed.markdown, as_markdown(result))


def _compare(parsed: argparse.Namespace) -> int:
    from cache_dit_serving.measure.load.compare import (
        compare,
        comparison_html,
        comparison_markdown,
        read_result,
    )

    if parsed.url:
        raise ConfigError("URL: --compare measures nothing; leave the URL out")
    if parsed.csv:
        raise ConfigError("--csv: is of a measurement, and --compare measures nothing; leave it out")
    a, b = (read_result(path) for path in parsed.compare)
    comparison = compare(a, b)
    write_file(parsed.output, comparison.model_dump_json(indent=1) + "\n")
    write_file(parsed.html, comparison_html(comparison) if parsed.html else "")
    _print_or_write(parsed.markdown, comparison_markdown(comparison))
    return 0


def _print_or_write(file: Path | None, text: str) -> None:
    if file is None:
        print(text, end="")
    else:
        write_file(file, text)
