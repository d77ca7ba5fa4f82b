"""How soon the server answers while the pipeline is busy: `python -m benchmarks.responsive`, two minutes on two cores.

Writes docs/benchmarks/responsive.md.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import requests

from benchmarks.machine import machine
from benchmarks.serving import server
from cache_dit_serving.config.catalog import BUNDLE_ROOT

PAGE = BUNDLE_ROOT / "docs" / "benchmarks" / "responsive.md"
ROUNDS = 300
PAUSE_S = 0.01
"""Between two requests of the client."""
BUSY: dict[str, Any] = {
    "prompt": "a red apple",
    "seed": 7,
    "num_inference_steps": 100,
    "speed": "lossless",
    "num_images": 8,
}
TEXT = """\
# Answers while the pipeline is busy

Written by `python -m benchmarks.responsive` ({date}): the embedded model draws without a break, and one client asks
each of these in turn, {rounds} times, with {pause_ms:.0f} ms between two requests. Milliseconds from request to
answer. The aim is a 99th percentile below 100 ms.

{machine}

| | median | 99th percentile | greatest |
|---|---|---|---|
{rows}
"""


def main() -> None:
    """Measure, and write the page."""
    with server() as running:
        session = requests.Session()
        url = running.url

        def submit(**fields: Any) -> str:
            answer = session.post(f"{url}/jobs", json=BUSY | fields, timeout=30)
            answer.raise_for_status()
            return url + answer.headers["Location"]

        job = submit()

        def get(path: str) -> Callable[[], object]:
            return lambda: session.get(path, timeout=30)

        def first_event() -> None:
            with session.get(f"{job}/events", stream=True, timeout=30) as events:
                next(events.iter_lines())

        def submit_and_cancel() -> None:
            session.delete(submit(num_images=1), timeout=30)

        asked: dict[str, Callable[[], object]] = {
            "`GET /jobs/{id}`": lambda: session.get(job, timeout=30),
            "`GET /jobs`": get(f"{url}/jobs"),
            "first event of `GET /jobs/{id}/events`": first_event,
            "`POST /jobs` and `DELETE` of it while it waits": submit_and_cancel,
            "`GET /health`": get(f"{url}/health"),
            "`GET /livez`": get(f"{url}/livez"),
            "`GET /readyz`": get(f"{url}/readyz"),
            "`GET /metrics`": get(f"{url}/metrics"),
        }
        taken: dict[str, list[float]] = {name: [] for name in asked}
        for _ in range(ROUNDS):
            if session.get(job, timeout=30).json()["state"] not in ("queued", "running"):
                job = submit()
            for name, ask in asked.items():
                time.sleep(PAUSE_S)
                began = time.perf_counter()
                ask()
                taken[name].append(1000 * (time.perf_counter() - began))
        session.delete(job, timeout=30)
    rows = [
        f"| {name} | {statistics.median(each):.1f} | {statistics.quantiles(each, n=100)[-1]:.1f} | {max(each):.1f} |"
        for name, each in taken.items()
    ]
    text = TEXT.format(
        date=datetime.now(UTC).date(),
        rounds=ROUNDS,
        pause_ms=1000 * PAUSE_S,
        machine=machine(),
        rows="\n".join(rows),
    )
    PAGE.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
