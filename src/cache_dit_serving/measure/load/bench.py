"""A benchmark from its first request to its results: warm-up, then one point after the other."""

from __future__ import annotations

import asyncio
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil

from cache_dit_serving import __version__
from cache_dit_serving.measure.load.arrival import Bounds, Closed, Load, Point
from cache_dit_serving.measure.load.client import Client, now
from cache_dit_serving.measure.load.doors import Door
from cache_dit_serving.measure.load.outcome import Failed, Outcome
from cache_dit_serving.measure.load.progress import Progress
from cache_dit_serving.measure.load.results import BenchResult, PointResult, point_result
from cache_dit_serving.measure.load.source import Source

MAX_INFO_BYTES = 256 << 10
"""Length of a server's description that the results keep."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that decides which requests a benchmark sends, and when."""

    url: str
    door: Door
    source: Source
    loads: Sequence[Load]
    bounds: Bounds
    warm_up: int
    timeout_s: float
    key: str | None = field(default=None, repr=False)
    seed: int = 0
    """Seed of the arrivals."""
    settings: dict[str, Any] = field(default_factory=dict)
    model: str | None = None
    """Name of the model of each request, for the server's description; None: the server's default one."""


async def measure(plan: Plan, progress: Progress, stop: asyncio.Event) -> BenchResult:
    """Run all points. Once `stop` is set, those in flight are given up and what is done is returned.

    Raises:
        Failed: the server cannot be reached or refuses its description, before any load.
    """
    begun_at = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    most = max([plan.bounds.in_flight, *(load.users for load in plan.loads if isinstance(load, Closed))])
    points: list[PointResult] = []
    async with Client(plan.url, key=plan.key, in_flight=most, timeout_s=plan.timeout_s) as client:
        server = await server_info(client, plan.model)
        if plan.warm_up:
            bounds = Bounds(plan.warm_up, plan.timeout_s, 1)
            await _run(Point(Closed(1), bounds, _sender(plan, client, 0)), progress, stop, "warm-up")
        for number, load in enumerate(plan.loads, 1):
            if stop.is_set():
                break
            point = Point(load, plan.bounds, _sender(plan, client, number), seed=plan.seed)
            cpu = time.process_time()
            await _run(point, progress, stop, f"point {number} of {len(plan.loads)}")
            cpu = (time.process_time() - cpu) / max(point.elapsed(), 1e-9)
            if point.outcomes:
                points.append(point_result(load, point.outcomes, client_cpu=cpu, held_back=point.held_back))
    return BenchResult(
        tool_version=__version__,
        begun_at=begun_at,
        url=plan.url,
        settings=plan.settings,
        server=server,
        machine=machine(),
        warm_up=plan.warm_up,
        interrupted=stop.is_set(),
        points=points,
    )


async def server_info(client: Client, model: str | None = None) -> dict[str, Any]:
    """Return the server's own description of a model; empty if it has no such route.

    Args:
        model: its name; None: the default one.

    Raises:
        Failed: it cannot be reached, wants another key, or is not ready.
    """
    try:
        answer = await client.ask(
            "GET", f"/get_model_info?model={quote(model, safe='')}" if model else "/get_model_info"
        )
        return answer.json() if len(answer.content) <= MAX_INFO_BYTES else {}
    except Failed as failure:
        if failure.kind[:3] in ("404", "405", "inv"):  # a server of another kind
            return {}
        raise


def machine() -> dict[str, Any]:
    """Return the client's machine: a busy one measures itself."""
    return {
        "system": f"{platform.system()} {platform.release()}",
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "python": platform.python_version(),
        "load_average": round(os.getloadavg()[0], 2),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _sender(plan: Plan, client: Client, point: int) -> _Sender:
    return _Sender(plan.door, plan.source, client, point)


@dataclass(frozen=True, slots=True)
class _Sender:
    """Sends the requests of one point."""

    door: Door
    source: Source
    client: Client
    point: int

    async def __call__(self, number: int, intended: float, begun: float) -> Outcome:
        kind, body = self.source.request(self.point, number)
        sent = now() - begun
        try:
            reading = await self.door.draw(self.client, body)
        except Failed as failure:
            return Outcome(
                kind=kind,
                intended=intended,
                sent=sent,
                ended=now() - begun,
                error=failure.kind,
                message=failure.message or None,
                retry_after_s=failure.retry_after_s,
            )
        return Outcome(kind=kind, intended=intended, sent=sent, ended=now() - begun, **dict(reading))


async def _run(point: Point, progress: Progress, stop: asyncio.Event, title: str) -> None:
    """Run a point until its end or until `stop`."""
    running = asyncio.create_task(point.run())
    stopping = asyncio.create_task(stop.wait())
    showing = asyncio.create_task(progress.follow(point, title))
    try:
        await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (running, stopping, showing):
            task.cancel()
        ended, *_ = await asyncio.gather(running, stopping, showing, return_exceptions=True)
    if isinstance(ended, Exception):
        raise ended
    progress.end(point, title)
