"""Progress of a benchmark: one line that is written anew on a terminal, and a line now and then elsewhere."""

from __future__ import annotations

import asyncio
import statistics
from typing import TextIO

from cache_dit_serving.measure.load.arrival import Point
from cache_dit_serving.measure.load.results import load_point

TERMINAL_S, PLAIN_S = 0.5, 10.0
"""Seconds between two lines."""


class Progress:
    """Lines about the point that runs."""

    def __init__(self, stream: TextIO, *, quiet: bool = False) -> None:
        self._stream, self._quiet = stream, quiet
        self._terminal = stream.isatty()

    async def follow(self, point: Point, title: str) -> None:
        """Show a point until this is cancelled."""
        while True:
            await asyncio.sleep(TERMINAL_S if self._terminal else PLAIN_S)
            self._show(line_of(point, title), stays=not self._terminal)

    def end(self, point: Point, title: str) -> None:
        """Show how a point ended, in a line that stays."""
        self._show(line_of(point, title, ended=True), stays=True)

    def _show(self, line: str, *, stays: bool) -> None:
        if not self._quiet:
            clear = "\r\033[K" if self._terminal else ""
            print(f"{clear}{line}", end="\n" if stays else "", file=self._stream, flush=True)


def line_of(point: Point, title: str, *, ended: bool = False) -> str:
    """Return the line about a point: requests done, their median latency, errors and the seconds left."""
    good = [outcome.latency for outcome in point.outcomes if outcome.error is None]
    done, errors = len(point.outcomes), len(point.outcomes) - len(good)
    parts = [f"{title}, {load_point(point.load).label()}: {done} of {point.bounds.requests}"]
    if good:
        parts.append(f"median {statistics.median(good):.3g} s")
    if errors:
        parts.append(f"{errors} {'error' if errors == 1 else 'errors'}")
    if ended:
        parts.append(f"in {point.elapsed():.1f} s")
    else:
        parts += [f"{point.in_flight} in flight", f"about {seconds_left(point):.0f} s left"]
    return ", ".join(parts)


def seconds_left(point: Point) -> float:
    """Return the seconds until the point has sent all of its requests, or its time is over, at the present rate."""
    elapsed, done = point.elapsed(), len(point.outcomes)
    by_time = max(0.0, point.bounds.duration_s - elapsed)
    return min(by_time, elapsed / done * (point.bounds.requests - done)) if done else by_time
