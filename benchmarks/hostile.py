"""Bodies and files made to be slow, in a loop: how long the event loop stands still, and the memory taken.

Alone: `python -m benchmarks.hostile`.
"""

from __future__ import annotations

import json
import statistics
import threading
import time
from dataclasses import dataclass
from itertools import chain
from typing import Any

import psutil
import requests

from benchmarks import serving
from tests.support import hostile_files
from tests.support.images import apple, data_uri, file_of

MANY = 300_000
BODIES = {
    "300,000 wrong entries of `cache.steps_computation_mask`": '{"prompt":"a","cache":{"steps_computation_mask":['
    + "2," * MANY
    + "2]}}",
    "240,000 strings as `sigmas`": '{"prompt":"a","sigmas":[' + '"a",' * 240_000 + '"a"]}',
    "60,000 unknown fields": "{" + ",".join(f'"key{i}":1' for i in range(60_000)) + "}",
    "300,000 empty lists": '{"prompt":"a","sigmas":[' + "[]," * MANY + "[]]}",
    "90,000 floats as an unknown field": '{"prompt":"a","b":[' + "1e9," * 90_000 + "1]}",
    "1,000 strings as `sigmas`": '{"prompt":"a","sigmas":[' + '"a",' * 999 + '"a"]}',
}
SECONDS = 5.0
"""For each body."""


@dataclass(frozen=True)
class Refused:
    """One hostile body, sent over and over by one client."""

    name: str
    bodies: int
    answer_bytes: int
    livez_median_ms: float
    livez_worst_ms: float


def measure(server: serving.RunningServer) -> list[Refused]:
    """`/livez` every few milliseconds while each body comes in a loop."""
    return [_measure(server, name, body.encode()) for name, body in BODIES.items()]


@dataclass(frozen=True)
class RefusedFile:
    """One hostile picture, sent over and over by one client."""

    refused: Refused
    file_bytes: int
    memory_mb: float
    """Most that all processes of the server took above what they had before."""
    honest_s: float
    """The slowest generation from an honest picture, drawn again and again meanwhile."""


def measure_files(server: serving.RunningServer) -> list[RefusedFile]:
    """`/livez`, the memory and an honest client while each picture comes in a loop."""
    honest = _Honest(server)
    honest.draw()  # the decoders have started
    return [_measure_file(server, honest, name, made()) for name, made in hostile_files.PICTURES.items()]


def _measure_file(server: serving.RunningServer, honest: _Honest, name: str, content: bytes) -> RefusedFile:
    body = json.dumps({"prompt": "a", "image_urls": [data_uri(content)]}).replace("image/png", "").encode()
    before, most, over = _memory_mb(server), 0.0, threading.Event()
    honest.slowest_s = 0.0

    def watch() -> None:
        nonlocal most
        while not over.is_set():
            most = max(most, _memory_mb(server))
            time.sleep(0.02)

    def draw() -> None:
        while not over.is_set():
            honest.draw()

    beside = [threading.Thread(target=each) for each in (watch, draw)]
    for thread in beside:
        thread.start()
    try:
        refused = _measure(server, name, body)
    finally:
        over.set()
        for thread in beside:
            thread.join()
    return RefusedFile(refused, len(content), most - before, honest.slowest_s)


class _Honest:
    """A client whose picture is as it should be."""

    def __init__(self, server: serving.RunningServer) -> None:
        self.slowest_s = 0.0
        self._url, self._session = f"{server.url}/generate", requests.Session()
        picture = data_uri(file_of(apple()))
        self._body: dict[str, Any] = {"prompt": "a", "image_urls": [picture], "num_inference_steps": 4}

    def draw(self) -> None:
        began = time.perf_counter()
        self._session.post(self._url, json=self._body).raise_for_status()
        self.slowest_s = max(self.slowest_s, time.perf_counter() - began)


def _memory_mb(server: serving.RunningServer) -> float:
    """Resident memory of the server and the processes below it."""
    total, process = 0, psutil.Process(server.process.pid)
    for each in chain([process], process.children(recursive=True)):
        try:
            total += each.memory_info().rss
        except psutil.NoSuchProcess:
            continue  # it ended meanwhile
    return total / 2**20


def _measure(server: serving.RunningServer, name: str, body: bytes) -> Refused:
    sizes: list[int] = []
    end = time.monotonic() + SECONDS

    def send() -> None:
        session = requests.Session()
        while time.monotonic() < end:
            answer = session.post(f"{server.url}/generate", data=body, headers={"Content-Type": "application/json"})
            assert answer.status_code == 400, answer.text
            sizes.append(len(answer.content))

    sender = threading.Thread(target=send)
    sender.start()
    times = []
    session = requests.Session()
    while time.monotonic() < end:
        began = time.perf_counter()
        session.get(f"{server.url}/livez").raise_for_status()
        times.append((time.perf_counter() - began) * 1000)
        time.sleep(0.002)
    sender.join()
    return Refused(name, len(sizes), max(sizes), statistics.median(times), max(times))


def rows(refused: list[Refused]) -> str:
    return "\n".join(
        f"| {one.name} | {one.bodies} | {one.answer_bytes} | {one.livez_median_ms:.1f} | {one.livez_worst_ms:.1f} |"
        for one in refused
    )


def file_rows(files: list[RefusedFile]) -> str:
    return "\n".join(
        f"| {one.refused.name} | {one.file_bytes:,} | {one.refused.bodies} | {one.memory_mb:.0f} | {one.honest_s:.2f} "
        f"| {one.refused.livez_median_ms:.1f} | {one.refused.livez_worst_ms:.1f} |"
        for one in files
    )


if __name__ == "__main__":
    with serving.server() as running:
        print(rows(measure(running)))
        print(file_rows(measure_files(running)))
