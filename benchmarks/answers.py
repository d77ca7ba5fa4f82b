"""What serving adds to a picture of 1024 px: `python -m benchmarks.answers`, one quiet minute.

Writes docs/benchmarks/answers.md.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple

import requests
import torch

from benchmarks.machine import machine
from benchmarks.progress import say
from benchmarks.serving import RunningServer, server
from benchmarks.stub_service import DECODED, SIDE
from cache_dit_serving.config.catalog import BUNDLE_ROOT
from cache_dit_serving.pipeline.arrival import bytes_of
from tests.support.server import options

PAGE = BUNDLE_ROOT / "docs" / "benchmarks" / "answers.md"
WARM_UP, ROUNDS = 10, 60
STEPS = 28
SETTINGS = options(
    CACHE=None,
    SPEEDS={},
    DEFAULTS={"width": SIDE, "height": SIDE, "num_inference_steps": STEPS, "max_sequence_length": 32},
    LIMITS={},
    SERVER__WARM_UP="false",
)
PROMPT = {"prompt": "a robot on a yellow background"}
TEXT = """\
# What serving adds to a picture

Written by `python -m benchmarks.answers` ({date}). The pipeline's call is replaced by one that reports {steps} steps
and returns a finished picture of {side} x {side} px as floats; all else is real. One client on the same machine,
{rounds} requests of each kind in turn; medians. CPU is the worker's, all threads together. Each picture is a PNG of
{kb:,.0f} kB. Wall times count on a quiet machine alone: `/livez` shows how quiet it was.

{machine}

| answer | CPU, ms | 95th percentile | wall, ms | 95th percentile |
|---|---|---|---|---|
{rows}

The CPU includes {bytes_ms:.1f} ms to make bytes of floats, which a GPU does by itself. Goal: at most 12 ms of CPU
beside that for a picture in one request.

A wall time of `/generate` with JSON, in parts; medians:

| part | ms |
|---|---|
| named by the answer's `timings`: queue, pipeline, bytes of floats, PNG | {named_ms:.1f} |
| a request that does nothing: `GET /livez` | {livez_ms:.1f} |
| the rest: checks, hand-overs between threads, base64, JSON, the connection, the client's reading | {rest_ms:.1f} |
"""


class Spent(NamedTuple):
    """One request, milliseconds."""

    cpu: float
    wall: float


class Client:
    """One connection, kept open."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._session = requests.Session()
        self.named_ms: list[float] = []
        """Milliseconds that the `timings` of each JSON answer name."""
        self.picture = b""

    def _send(self, method: str, path: str, body: dict[str, Any] | None = None, **headers: str) -> requests.Response:
        response = self._session.request(method, self._url + path, json=body, headers=headers, timeout=30)
        response.raise_for_status()
        return response

    def json(self) -> None:
        timings = self._send("POST", "/generate", PROMPT).json()["timings"]
        self.named_ms.append(1000 * sum(seconds for name, seconds in timings.items() if name != "prompt_hits"))

    def file(self) -> None:
        self.picture = self._send("POST", "/generate", PROMPT, Accept="image/png").content

    def path(self) -> None:
        self._send("POST", "/generate", PROMPT | {"output_format": "path"})

    def openai(self) -> None:
        self._send("POST", "/v1/images/generations", PROMPT)

    def job(self) -> None:
        """Submit a job, follow its events, and get its picture."""
        place = self._send("POST", "/jobs", PROMPT).headers["Location"]
        self._send("GET", f"{place}/events")
        url: str = self._send("GET", place).json()["result"]["images"][0]
        self._send("GET", url.removeprefix(self._url))

    def livez(self) -> None:
        self._send("GET", "/livez")


def cpu_ms(pid: int) -> float:
    """Return the CPU milliseconds of a process so far."""
    clock = (~pid << 3) | 2  # as clock_getcpuclockid(3) makes it
    return 1000 * time.clock_gettime(clock)


def measured(running: RunningServer) -> tuple[Client, dict[str, list[Spent]]]:
    """Return the client, and what each request took, by the kind of its answer."""
    client, worker = Client(running.url), running.worker().pid
    kinds: dict[str, Callable[[], None]] = {
        "`POST /generate`, JSON with base64": client.json,
        "`POST /generate`, `Accept: image/png`": client.file,
        "`POST /generate`, `output_format: path`": client.path,
        "`POST /v1/images/generations`": client.openai,
        "`POST /jobs`, its events, its state and its file: 4 requests": client.job,
        "`GET /livez`, for comparison": client.livez,
    }
    spent: dict[str, list[Spent]] = {kind: [] for kind in kinds}
    for _ in range(WARM_UP + ROUNDS):
        for kind, ask in kinds.items():
            cpu, began = cpu_ms(worker), time.perf_counter()
            ask()
            wall = 1000 * (time.perf_counter() - began)
            spent[kind].append(Spent(cpu_ms(worker) - cpu, wall))
    return client, {kind: each[WARM_UP:] for kind, each in spent.items()}


def bytes_ms() -> float:
    """Return the CPU milliseconds of the conversion from floats, by the same code in this process."""
    torch.set_num_threads(1)
    taken = []
    for _ in range(ROUNDS):
        began = time.thread_time()
        bytes_of(DECODED[0])
        taken.append(time.thread_time() - began)
    return 1000 * statistics.median(taken)


def main() -> None:
    """Measure, and write the page."""
    say(f"a server whose pipeline is a stub; {WARM_UP + ROUNDS} rounds")
    with server(SETTINGS, service="benchmarks.stub_service:CacheDiTServing") as running:
        client, spent = measured(running)
    rows = []
    for kind, each in spent.items():
        cpu, wall = zip(*each, strict=True)
        values = [value for of in (cpu, wall) for value in (statistics.median(of), statistics.quantiles(of, n=20)[-1])]
        rows.append(f"| {kind} | {' | '.join(f'{value:.1f}' for value in values)} |")
    kinds = list(spent.values())
    livez_ms = statistics.median(each.wall for each in kinds[-1])
    named_ms = statistics.median(client.named_ms[WARM_UP:])
    rests = [each.wall - named for each, named in zip(kinds[0], client.named_ms[WARM_UP:], strict=True)]
    text = TEXT.format(
        date=datetime.now(UTC).date(),
        steps=STEPS,
        side=SIDE,
        rounds=ROUNDS,
        kb=len(client.picture) / 1000,
        machine=machine(),
        rows="\n".join(rows),
        bytes_ms=bytes_ms(),
        named_ms=named_ms,
        livez_ms=livez_ms,
        rest_ms=statistics.median(rests) - livez_ms,
    )
    PAGE.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
