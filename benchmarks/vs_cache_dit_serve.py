"""Side by side with cache_dit.serve: `python -m benchmarks.vs_cache_dit_serve`, at most 14 minutes.

Writes docs/benchmarks/vs-cache-dit-serve.md. Each number of threads has its share of the time: on two quiet cores that
is enough for all rounds, on a busy machine for fewer, two at least. `--quick` takes a minute and writes nothing. The
first run makes the old server's environment, which takes another minute.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import requests

from benchmarks import old_server
from benchmarks.machine import machine
from benchmarks.progress import say
from benchmarks.side_by_side import NEW, OLD, SIDES, Pair, Round
from benchmarks.vs_page import LEFT_STEPS, SHORT_PROMPT, Measured, Memory, page_of
from benchmarks.vs_servers import BODY, PROMPT, Running, same_work, started
from cache_dit_serving.config.catalog import BUNDLE_ROOT
from cache_dit_serving.measure.load.arrival import Bounds, Closed
from cache_dit_serving.measure.load.bench import Plan, measure
from cache_dit_serving.measure.load.doors import Generate, OldServer
from cache_dit_serving.measure.load.outcome import Outcome
from cache_dit_serving.measure.load.progress import Progress
from cache_dit_serving.measure.load.source import Entry, Source, read_prompts

PAGE = BUNDLE_ROOT / "docs" / "benchmarks" / "vs-cache-dit-serve.md"
ROUNDS, REPEATS = 6, 3
LEAST_ROUNDS = 2
"""Rounds that are measured even where the time is over: a ratio of one is none."""
MINUTES = 14.0
RESERVE_S = 90.0
"""Time that is kept for clients that leave, seconds."""
LOADS = {1: 5, 4: 6, 8: 10}
"""Requests of a round, by clients."""
LEAVING = {
    "one client, at once": (1, 0.0),
    "one client, after 0.5 s": (1, 0.5),
    "four clients, at once": (4, 0.0),
}
"""Clients that leave, and the seconds after which they do."""


def others_clock(servers: Sequence[Running]) -> tuple[float, float]:
    """Return the time, and the CPU seconds of the machine without the servers' and this process's."""
    times = psutil.cpu_times()
    busy = sum(times) - times.idle - times.iowait - times.guest - times.guest_nice
    return time.perf_counter(), busy - time.process_time() - sum(running.cpu_s() for running in servers)


def drawn(running: Running, users: int, count: int, block: int, **fields: Any) -> Round:
    """Send requests in a closed loop by `bench`. Each block has prompts of its own, so that none is remembered."""
    plan = Plan(
        url=running.url,
        door=OldServer() if running.name == OLD else Generate(),
        source=Source([f"{prompt}, {block}" for prompt in read_prompts(None)], [Entry(body=BODY | fields)], block),
        loads=[Closed(users)],
        bounds=Bounds(count, 600, users),
        warm_up=0,
        timeout_s=600,
    )
    cpu_s = running.cpu_s()
    result = asyncio.run(measure(plan, Progress(sys.stderr, quiet=True), asyncio.Event()))
    samples: list[Outcome] = result.points[0].samples
    return Round(samples, running.cpu_s() - cpu_s)


def waits_after(running: Running, clients: int, after_s: float) -> float:
    """Let clients leave, and return the seconds that the next one's answer takes longer than one before."""
    alone_s = _answer_s(running)
    body = json.dumps(PROMPT | BODY | {"num_inference_steps": LEFT_STEPS})
    leaving = [http.client.HTTPConnection(running.url.removeprefix("http://")) for _ in range(clients)]
    for connection in leaving:
        connection.request("POST", "/generate", body, {"Content-Type": "application/json"})
    time.sleep(after_s)
    for connection in leaving:
        connection.close()
    return _answer_s(running) - alone_s


def _answer_s(running: Running) -> float:
    began = time.perf_counter()
    requests.post(f"{running.url}/generate", json=PROMPT | BODY, timeout=600).raise_for_status()
    return time.perf_counter() - began


def measure_all(threads: Sequence[int], rounds: int, repeats: int, seconds: float = math.inf) -> Measured:
    """Measure both servers with each number of threads, and clients that leave with the first.

    Args:
        rounds: rounds at most.
        seconds: time for all; each number of threads has an equal share of what is left when its turn comes.
    """
    measured, ends_at = Measured(), time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        for turn, number in enumerate(threads):
            began = time.monotonic()
            reserve_s = RESERVE_S if turn == 0 else 0.0
            share_ends_at = began + (ends_at - began - reserve_s) / (len(threads) - turn)
            with started(OLD, number, Path(folder)) as old, started(NEW, number, Path(folder)) as new:
                _measure(measured, number, (old, new), rounds, share_ends_at)
                if number == threads[0]:
                    measured.leaving = _leaving((old, new), repeats)
    return measured


def another_round(turn: int, most: int, *, longest_s: float, left_s: float) -> bool:
    """Return True if one more round is to be measured.

    Args:
        turn: rounds that are done.
        longest_s: seconds of the longest one so far.
        left_s: seconds until the end of the share.
    """
    return turn < most and (turn < LEAST_ROUNDS or longest_s <= left_s)


def _measure(measured: Measured, threads: int, servers: Sequence[Running], rounds: int, ends_at: float) -> None:
    ready_mb = [running.megabytes() for running in servers]
    measured.same = same_work(servers)
    for running in servers:
        drawn(running, 1, 2, 0)
    pairs = [Pair(threads, users, {name: [] for name in SIDES}) for users in LOADS]
    shorter = measured.shorter[threads] = []
    clock, longest_s = others_clock(servers), 0.0
    turn = 0
    while another_round(turn, rounds, longest_s=longest_s, left_s=ends_at - time.monotonic()):
        began = time.monotonic()
        for pair in pairs:
            for running in servers if turn % 2 else reversed(servers):
                made = drawn(running, pair.users, LOADS[pair.users], 1 + 100 * turn + pair.users)
                pair.rounds[running.name].append(made)
        shorter.append(drawn(servers[1], 1, LOADS[1], 90 + 100 * turn, max_sequence_length=SHORT_PROMPT))
        turn, longest_s = turn + 1, max(longest_s, time.monotonic() - began)
        say(f"torch threads {threads}, round {turn} of {rounds}, {longest_s:.0f} s at most")
    measured.others.add(clock, others_clock(servers))
    measured.pairs += pairs
    for running, ready in zip(servers, ready_mb, strict=True):
        processes = len(running.processes())
        measured.memory.append(Memory(threads, running.name, running.ready_s, processes, ready, running.megabytes()))


def _leaving(servers: Sequence[Running], repeats: int) -> dict[str, dict[str, list[float]]]:
    waits: dict[str, dict[str, list[float]]] = {what: {name: [] for name in SIDES} for what in LEAVING}
    for _ in range(repeats):
        for what, (clients, after_s) in LEAVING.items():
            for running in servers:
                waits[what][running.name].append(waits_after(running, clients, after_s))
    return waits


def main() -> None:
    """Measure, print, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one thread and one round; write nothing")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="rounds (default: %(default)s)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="torch threads (default: 1 2)")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="time for all (default: %(default)g)")
    arguments = parser.parse_args()
    quick: bool = arguments.quick
    conditions = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "cores": str(os.cpu_count()),
        "versions": old_server.versions(old_server.python()),
    }
    seconds = 60 * arguments.minutes
    measured = measure_all((1,), 1, 1) if quick else measure_all(arguments.threads, arguments.rounds, REPEATS, seconds)
    text = page_of(measured, conditions)
    if not quick:
        PAGE.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
