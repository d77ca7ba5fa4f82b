"""What `server.queue_order: shortest` does to the time that requests wait: `python -m benchmarks.queue_order`.

A simulation of the queue itself with arrivals of an hour, and a run of a real server: four minutes on two cores.
Writes docs/benchmarks/queue-order.md.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, NamedTuple, cast, get_args

import requests

from benchmarks.machine import machine
from benchmarks.serving import server
from cache_dit_serving.config.catalog import BUNDLE_ROOT
from cache_dit_serving.jobs.generation import Generation
from cache_dit_serving.jobs.queue import OVERTAKEN, Order, Queue

PAGE = BUNDLE_ROOT / "docs" / "benchmarks" / "queue-order.md"
ORDERS: tuple[Order, ...] = get_args(Order)
LONG = 0.2
"""Share of the requests that are long."""
TIMES = 10.0
"""How much longer they are."""
HOURS = 20
LOADS = (0.5, 0.8, 0.95)
RUN_LOAD = 0.85
RUN_REQUESTS = 80
STEPS = 10
"""Denoising steps of a short request of the run."""
TEXT = """\
# Shortest first

Written by `python -m benchmarks.queue_order` ({date}). `server.queue_order` is `arrival`, first come first served, or
`shortest`: of the requests of one priority and caller those first that are expected to take least. One that takes long
is overtaken only by those that come within {overtaken:g} times its own duration, so it never waits for ever.

{long:.0%} of the requests take {times:g} times as long as the others, and requests come at random (Poisson). The load
is the share of the time that the pipeline is busy. Both orders get the same requests.

## Simulated

The queue of the server (`jobs/queue.py`) under a simulated clock, {hours} hours of arrivals; a short request takes one
second.

| load | order | mean wait, s | of short ones, s | of long ones, s | longest, s |
|---|---|---|---|---|---|
{simulated}

## Measured

A server with the embedded model and a load of about {run_load}: {requests} jobs of {steps} steps, or {times:g} times
as many, without the cache.

{machine}

| order | mean wait, s | of short ones, s | of long ones, s | longest, s |
|---|---|---|---|---|
{measured}
"""


class Request(NamedTuple):
    """One that comes at a time, s."""

    at: float
    long: bool


class Wait(NamedTuple):
    """How long one waited, s."""

    seconds: float
    long: bool


def arrivals(load: float, short_s: float, dice: random.Random) -> Iterable[Request]:
    """Requests for ever, so many that they are that load."""
    mean_s = short_s * (1 + LONG * (TIMES - 1))
    at = 0.0
    while True:
        at += dice.expovariate(load / mean_s)
        yield Request(at, dice.random() < LONG)


def simulated(order: Order, load: float) -> list[Wait]:
    """The waits of all requests of some hours."""
    now = 0.0
    queue = Queue(order, lambda generation: cast(Any, generation.planned).seconds, lambda: now)
    came: dict[Generation, Request] = {}
    waits = []
    free_at = 0.0

    def begin(until: float) -> None:
        """What begins until then."""
        nonlocal now, free_at
        while len(queue) and free_at <= until:
            now = free_at
            generation = queue.next()
            request = came.pop(generation)
            waits.append(Wait(now - request.at, request.long))
            free_at = now + cast(Any, generation.planned).seconds

    for number, request in enumerate(arrivals(load, 1.0, random.Random(1))):
        if request.at > HOURS * 3600:
            begin(float("inf"))
            return waits
        begin(request.at)
        now = request.at
        free_at = max(free_at, now)
        call = SimpleNamespace(seconds=TIMES if request.long else 1.0, warnings=(), to_resize=())
        generation = Generation(str(number), cast(Any, call))
        came[generation] = request
        queue.add(generation)
        begin(now)
    raise AssertionError("arrivals do not end")


def measured(order: Order) -> list[Wait]:
    """The waits of jobs at a real server."""
    environ = {"CACHE_DIT_SERVING__SERVER__QUEUE_ORDER": order, "CACHE_DIT_SERVING__LIMITS__MAX_QUEUE": "1000"}
    with server(environ) as running:

        def body(long: bool, seed: int) -> dict[str, Any]:
            steps = STEPS * int(TIMES) if long else STEPS
            return {"prompt": "a red apple", "seed": seed, "speed": "lossless", "num_inference_steps": steps}

        def timed(long: bool) -> float:
            began = time.perf_counter()
            requests.post(f"{running.url}/generate", json=body(long, 1), timeout=60).raise_for_status()
            return time.perf_counter() - began

        for long in (False, True):
            timed(long)
        short_s = statistics.median(timed(False) for _ in range(9))
        began = time.monotonic()

        def submit(number: int, request: Request) -> tuple[str, bool]:
            time.sleep(max(0.0, began + request.at - time.monotonic()))
            answer = requests.post(f"{running.url}/jobs", json=body(request.long, number), timeout=60)
            return answer.headers["Location"], request.long

        coming = list(zip(range(RUN_REQUESTS), arrivals(RUN_LOAD, short_s, random.Random(2)), strict=False))
        with ThreadPoolExecutor(len(coming)) as pool:
            jobs = list(pool.map(submit, *zip(*coming, strict=True)))
        waits = []
        for job, long in jobs:
            while (answer := requests.get(running.url + job, timeout=30).json())["state"] in ("queued", "running"):
                time.sleep(0.2)
            queued, began_at = (datetime.fromisoformat(moment["at"]) for moment in answer["history"][:2])
            waits.append(Wait((began_at - queued).total_seconds(), long))
        return waits


def row(*cells: object, waits: list[Wait]) -> str:
    """Of a table."""

    def mean(some: Iterable[Wait]) -> str:
        return f"{statistics.mean(wait.seconds for wait in some):.2f}"

    short, long = ([wait for wait in waits if wait.long == which] for which in (False, True))
    longest = max(wait.seconds for wait in waits)
    return f"| {' | '.join(map(str, (*cells, mean(waits), mean(short), mean(long))))} | {longest:.1f} |"


def main() -> None:
    """Simulate, measure, and write the page."""
    simulations = [row(load, order, waits=simulated(order, load)) for load in LOADS for order in ORDERS]
    runs = [row(order, waits=measured(order)) for order in ORDERS]
    text = TEXT.format(
        date=datetime.now(UTC).date(),
        overtaken=OVERTAKEN,
        long=LONG,
        times=TIMES,
        hours=HOURS,
        run_load=RUN_LOAD,
        requests=RUN_REQUESTS,
        steps=STEPS,
        machine=machine(),
        simulated="\n".join(simulations),
        measured="\n".join(runs),
    )
    PAGE.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
