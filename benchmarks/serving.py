"""What serving adds to the pipeline: time and CPU of a request, saturation, time to ready, memory.

`python -m benchmarks.serving` prints the first two, in one to two minutes each: the number of requests follows from the
machine. `--only overhead` and `--only saturation` measure one of them. `make bench` writes all four.
"""

from __future__ import annotations

import argparse
import copy
import http.client
import json
import logging
import math
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import psutil
import requests
import torch
from PIL import Image

from cache_dit_serving.config.catalog import BUNDLE_ROOT
from cache_dit_serving.config.reading import load_settings
from cache_dit_serving.config.settings import Settings
from cache_dit_serving.measure.statistics import Estimate, median
from cache_dit_serving.pipeline.cache import cache_dit_configs
from cache_dit_serving.pipeline.environment import quiet_libraries
from cache_dit_serving.pipeline.load import load_pipeline

PROMPT = "a red apple on a blue background"
RATIO_GOAL = 1.04
"""Most that a request may take, as a multiple of the direct call under inference mode."""
LEAST_PAIRS = 10
EACH_ENCODED = MappingProxyType({"CACHE_DIT_SERVING__LIMITS__PROMPT_CACHE_BYTES": "0"})
"""Variables of a server that encodes the prompt of each request, as the direct call does."""
POLL_S = 0.1
"""Seconds between two looks for a server's readiness. At 0.02 they take a worker 0.7 s of CPU while it starts."""


class BarePipeline:
    """diffusers and cache-dit as a script uses them: the same settings, a PIL image out."""

    def __init__(self, settings: Settings) -> None:
        import cache_dit

        self._settings = settings
        self._pipe = load_pipeline(settings, lambda what: None)
        if settings.cache is not None:
            config, calibrator = copy.deepcopy(cache_dit_configs(settings.cache))
            cache_dit.enable_cache(self._pipe, cache_config=config, calibrator_config=calibrator)

    def draw(self, seed: int) -> Image.Image:
        defaults = self._settings.defaults
        drawn = self._pipe(
            prompt=PROMPT,
            width=defaults.width,
            height=defaults.height,
            num_inference_steps=defaults.num_inference_steps,
            max_sequence_length=defaults.max_sequence_length,
            generator=torch.Generator("cpu").manual_seed(seed),
            **defaults.pipeline_arguments,
        )
        image: Image.Image = drawn.images[0]
        return image

    def draw_in_inference_mode(self, seed: int) -> None:
        """Draw as the server does, which calls the pipeline under torch.inference_mode."""
        with torch.inference_mode():
            self.draw(seed)

    def draw_each(self, seeds: range) -> None:
        for seed in seeds:
            self.draw(seed)

    def draw_each_in_inference_mode(self, seeds: range) -> None:
        for seed in seeds:
            self.draw_in_inference_mode(seed)


@dataclass
class RunningServer:
    url: str
    process: subprocess.Popen[bytes]
    ready_s: float

    def worker(self) -> psutil.Process:
        """The process that holds the pipeline: the one with the most memory."""
        children: list[psutil.Process] = psutil.Process(self.process.pid).children(recursive=True)
        return max(children, key=lambda child: child.memory_info().rss)

    def busy_s(self) -> float:
        text = requests.get(f"{self.url}/metrics").text
        found = re.search(r"^cache_dit_serving_pipeline_busy_seconds_total\S* (\S+)$", text, re.M)
        return float(found.group(1)) if found else 0.0


@contextmanager
def server(
    environ: Mapping[str, str] = MappingProxyType({}), log: Path | None = None, service: str = "."
) -> Iterator[RunningServer]:
    """`bentoml serve` as a user starts it, with these variables, ready.

    Its `ready_s` is from the command to the first 200 of /readyz.

    Args:
        log: file of its log; None for a temporary one.
        service: what BentoML serves, by its name for it.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = log or Path(tempfile.mkdtemp()) / "server.log"
    began = time.perf_counter()
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "bentoml", "serve", service, "--host", "127.0.0.1", "--port", str(port)],
            cwd=BUNDLE_ROOT,
            stdout=file,
            stderr=file,
            env=os.environ | {"BENTOML_DO_NOT_TRACK": "True"} | dict(environ),
        )
    url = f"http://127.0.0.1:{port}"
    try:
        while not is_ready(url):
            if process.poll() is not None:
                raise RuntimeError(f"the server ended:\n{log.read_text()}")
            time.sleep(POLL_S)
        yield RunningServer(url, process, time.perf_counter() - began)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def is_ready(url: str, timeout_s: float = 5) -> bool:
    """Return whether a server answers /readyz with 200. One that is silent for `timeout_s` is still loading: imports
    and the start of CUDA can hold the worker's interpreter for seconds."""
    try:
        return requests.get(f"{url}/readyz", timeout=timeout_s).status_code == 200
    except (requests.ConnectionError, requests.Timeout):
        return False


class Client:
    """One connection, kept open; the standard library's, so that the client adds little of its own."""

    def __init__(self, running: RunningServer) -> None:
        self._connection = http.client.HTTPConnection(running.url.removeprefix("http://"))

    def generate(self, seed: int, **fields: Any) -> None:
        body = json.dumps({"prompt": PROMPT, "seed": seed, **fields})
        self._connection.request("POST", "/generate", body, {"Content-Type": "application/json"})
        response = self._connection.getresponse()
        answer = response.read()
        if response.status != 200:
            raise RuntimeError(answer.decode())


@dataclass(frozen=True)
class Overhead:
    direct_s: float
    inference_mode_s: float
    """The direct call under torch.inference_mode, as the server makes it."""
    served_s: float
    ratio: Estimate
    """Median of a request's seconds over those of the direct call under inference mode next to it."""
    thread_cpu_ratio: float
    """CPU of the pipeline's thread for a request, as a multiple of that of the direct call under inference mode."""
    thread_waits: float
    """Waits of the pipeline's thread per request: for work, for a lock, or for the interpreter."""
    http_cpu_ms: float
    requests: int


def overhead(
    bare: BarePipeline,
    running: RunningServer,
    pairs: int = 100,
    seconds: float = math.inf,
    progress: Callable[[str], None] = lambda line: None,
) -> Overhead:
    """Direct call, the same under inference mode, and POST /generate in turn, the same seed each; medians.

    The last two change places from one seed to the next, so a machine that slows down favours neither. The pipeline's
    thread is the busiest of the worker. The CPU of the HTTP layer is that of all others. A busy machine stretches
    seconds; it hardly changes the ratio of CPU and the number of waits.

    Args:
        pairs: most seeds.
        seconds: time after which no further seed begins; ten are drawn at least.
        progress: takes a line after every tenth seed.
    """
    session = Client(running)
    direct, inference_mode, served, cpu_ratios = [], [], [], []
    for seed in range(3):
        bare.draw(seed)
        session.generate(seed)
    thread = max(before := _threads_of(running), key=lambda id: before[id].cpu_s)
    ends = time.monotonic() + seconds
    for seed in range(pairs):
        if seed >= LEAST_PAIRS and time.monotonic() > ends:
            break
        direct.append(_timed(partial(bare.draw, seed)))
        bare_cpu_s = served_cpu_s = 0.0
        for is_served in (seed % 2 == 1, seed % 2 == 0):
            if is_served:
                began = _threads_of(running)[thread].cpu_s
                served.append(_timed(partial(session.generate, seed)))
                served_cpu_s = _threads_of(running)[thread].cpu_s - began
            else:
                began = time.thread_time()
                inference_mode.append(_timed(partial(bare.draw_in_inference_mode, seed)))
                bare_cpu_s = time.thread_time() - began
        cpu_ratios.append(served_cpu_s / bare_cpu_s)
        if (seed + 1) % 10 == 0:
            so_far = statistics.median(b / a for a, b in zip(inference_mode, served, strict=True))
            cpu_so_far = statistics.median(cpu_ratios)
            progress(f"{seed + 1} of {pairs}: ratio {so_far:.3f}, CPU of the pipeline's thread {cpu_so_far:.3f}")
    after, count = _threads_of(running), len(served)
    ratio = median([b / a for a, b in zip(inference_mode, served, strict=True)])
    spent = sum(each.cpu_s - before.get(id, _Thread(0, 0)).cpu_s for id, each in after.items() if id != thread)
    return Overhead(
        direct_s=statistics.median(direct),
        served_s=statistics.median(served),
        inference_mode_s=statistics.median(inference_mode),
        ratio=ratio,
        thread_cpu_ratio=statistics.median(cpu_ratios),
        thread_waits=(after[thread].waits - before[thread].waits) / count,
        http_cpu_ms=spent / count * 1000,
        requests=count,
    )


@dataclass(frozen=True)
class Saturation:
    clients: int
    pictures: int
    busy_share: float
    served_per_minute: float
    direct_per_minute: float
    inference_mode_per_minute: float


def saturation(
    bare: BarePipeline,
    running: RunningServer,
    clients: int = 8,
    each: int = 25,
    progress: Callable[[str], None] = lambda line: None,
) -> Saturation:
    """`clients` at once against bare loops, with and without inference mode, half before and half after.

    Args:
        each: requests of a client.
        progress: takes a line before each part.
    """
    loop = range(max(10, clients * each // 4))
    progress(f"two bare loops of {len(loop)} pictures")
    direct_s = _timed(lambda: bare.draw_each(loop))
    inference_mode_s = _timed(lambda: bare.draw_each_in_inference_mode(loop))

    def client(number: int) -> None:
        session = Client(running)
        for index in range(each):
            session.generate(number * each + index)

    progress(f"{clients} clients, {clients * each} pictures")
    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    busy, began = running.busy_s(), time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wall = time.perf_counter() - began
    share = (running.busy_s() - busy) / wall
    progress("the bare loops once more")
    inference_mode_s += _timed(lambda: bare.draw_each_in_inference_mode(loop))
    direct_s += _timed(lambda: bare.draw_each(loop))
    return Saturation(
        clients=clients,
        pictures=clients * each,
        busy_share=share,
        served_per_minute=clients * each / wall * 60,
        direct_per_minute=2 * len(loop) / direct_s * 60,
        inference_mode_per_minute=2 * len(loop) / inference_mode_s * 60,
    )


@dataclass(frozen=True)
class Memory:
    ready_mb: float
    after_40_mb: float
    after_200_mb: float


def memory(running: RunningServer) -> Memory:
    """Resident memory of the worker over 200 requests of mixed sizes and step counts."""
    session, worker = Client(running), running.worker()
    readings = [_resident_mb(worker)]
    for index in range(200):
        size = {"width": (80, 96, 112)[index % 3], "height": (80, 96, 112)[index // 3 % 3]}
        session.generate(index, num_inference_steps=4 + index % 25, **size)
        readings.append(_resident_mb(worker))
    return Memory(readings[0], readings[40], readings[200])


def _timed(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


class _Thread(NamedTuple):
    cpu_s: float
    waits: int


def _threads_of(running: RunningServer) -> dict[int, _Thread]:
    """Return the CPU seconds and the waits of each thread of the worker so far, as Linux counts them."""
    threads = {}
    for task in Path(f"/proc/{running.worker().pid}/task").iterdir():
        with suppress(FileNotFoundError):  # it has ended
            cpu_ns = (task / "schedstat").read_text().split()[0]
            waits = re.search(r"^voluntary_ctxt_switches:\s+(\d+)", (task / "status").read_text(), re.M)
            threads[int(task.name)] = _Thread(int(cpu_ns) / 1e9, int(waits[1]) if waits else 0)
    return threads


def _resident_mb(process: psutil.Process) -> float:
    return float(process.memory_info().rss) / 2**20


PARTS = ("overhead", "saturation")
SECONDS = 80.0
"""Seconds that each of them may take in the command."""


def main() -> None:
    """Measure what serving adds and the saturation, and print them, each as soon as it is there."""
    arguments = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    arguments.add_argument("--only", choices=PARTS, help="measure this alone (default: both)")
    arguments.add_argument(
        "--seconds", type=float, default=SECONDS, help="time of each; less gives fewer requests (default: %(default)g)"
    )
    chosen = arguments.parse_args()
    began = time.monotonic()

    def progress(line: str) -> None:
        print(f"{time.monotonic() - began:5.0f} s  {line}", flush=True)

    quiet_libraries()
    logging.getLogger("cache_dit_serving").setLevel(logging.WARNING)
    bare = BarePipeline(load_settings({}))
    progress("the direct call's pipeline is loaded; the server starts")
    with server(EACH_ENCODED) as running:
        progress(f"the server is ready after {running.ready_s:.1f} s")
        if chosen.only != "saturation":
            for line in overhead_lines(overhead(bare, running, seconds=chosen.seconds, progress=progress)):
                progress(line)
        if chosen.only != "overhead":
            bare.draw(0)
            each = requests_within(chosen.seconds, _timed(lambda: bare.draw(0)))
            for line in saturation_lines(saturation(bare, running, each=each, progress=progress)):
                progress(line)


def requests_within(seconds: float, picture_s: float, clients: int = 8, most: int = 25) -> int:
    """Return how many requests of each client fit, beside as many pictures of the bare loops."""
    return max(2, min(most, int(seconds / picture_s / clients / 2)))


def with_interval(estimate: Estimate) -> str:
    """Return a ratio with its confidence interval, such as `1.014 (1.009 to 1.020)`."""
    return f"{estimate.value:.3f} ({estimate.low:.3f} to {estimate.high:.3f})"


def overhead_lines(added: Overhead) -> list[str]:
    """Return the ratio with its interval, and beside it the CPU, which holds on a busy machine too."""
    return [
        f"/generate over the direct call under inference mode: {with_interval(added.ratio)}, "
        f"goal at most {RATIO_GOAL}, {added.requests} pairs in turn",
        f"medians: direct {added.direct_s:.4f} s, under inference mode {added.inference_mode_s:.4f} s, "
        f"/generate {added.served_s:.4f} s",
        f"CPU of the pipeline's thread: {added.thread_cpu_ratio:.3f} of the direct call's, "
        f"{added.thread_waits:.1f} waits a request; of all other threads {added.http_cpu_ms:.1f} ms a request",
        f"machine: load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores",
    ]


def saturation_lines(full: Saturation) -> list[str]:
    """Return the busy share, and the pictures against the bare loop."""
    return [
        f"{full.clients} clients, {full.pictures} pictures: "
        f"the pipeline's thread is busy {full.busy_share:.4f} of the time",
        f"{full.served_per_minute:.1f} pictures a minute, "
        f"{full.served_per_minute / full.inference_mode_per_minute:.3f} of the bare loop under inference mode, "
        f"{full.served_per_minute / full.direct_per_minute:.3f} of the bare loop",
    ]


if __name__ == "__main__":
    main()
