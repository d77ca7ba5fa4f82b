"""Bodies made to be slow, in a loop: how long the event loop stands still. Alone: `python -m benchmarks.hostile`."""

from __future__ import annotations

import statistics
import threading
import time
from dataclasses import dataclass

import requests

from benchmarks import serving

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


if __name__ == "__main__":
    with serving.server() as running:
        print(rows(measure(running)))
