"""What it costs a generation to be followed: `python -m benchmarks.job_events`, three minutes on two quiet cores.

Writes docs/benchmarks/job-events.md.
"""

from __future__ import annotations

import statistics
import threading
import time
from datetime import UTC, datetime
from typing import Any

import psutil
import requests

from benchmarks.machine import machine
from benchmarks.serving import server
from cache_dit_serving.config.catalog import BUNDLE_ROOT

PAGE = BUNDLE_ROOT / "docs" / "benchmarks" / "job-events.md"
ROUNDS = 16
FOLLOWERS = (0, 1, 8)
ASKED: dict[str, Any] = {
    "prompt": "a red apple on a blue background",
    "seed": 7,
    "num_inference_steps": 60,
    "speed": "lossless",
}
TEXT = """\
# What it costs a job to be followed

Written by `python -m benchmarks.job_events` ({date}): the embedded model, 60 steps without the cache. The same picture
as a request of `/generate`, and as a job that nobody, one client and eight clients follow by `GET /jobs/{{id}}/events`,
in turn; {rounds} rounds. Medians of `timings.denoise`, and of its ratio to the request's of the same round.

{machine}

| | denoise, s | of a request's | middle half of the ratios | events of each follower | CPU time of the server, s |
|---|---|---|---|---|---|
{rows}

A step of this model takes {step_ms:.1f} ms. The clients run on the same cores as the server and take their part of
them, so the ratios are of both together. The CPU time is the server's alone: one follower adds {per_event_ms:.2f} ms to
it for each event, on a thread beside the one that runs the model. That is 0.5 % of a step of {step_for_aim_ms:.0f} ms.
"""


def denoise_s(answer: dict[str, Any]) -> float:
    return float(answer["timings"]["denoise"])


def cpu_s(server: psutil.Process) -> float:
    """What all its processes have used."""
    times = [each.cpu_times() for each in (server, *server.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def generated(url: str) -> float:
    """Seconds of denoising of a request."""
    return denoise_s(requests.post(f"{url}/generate", json=ASKED, timeout=60).json())


def followed(url: str, followers: int, about_s: float) -> tuple[float, float]:
    """Seconds of denoising of a job, and how many events each follower got.

    Args:
        about_s: for how long the job is left alone where nobody follows it.
    """
    job = requests.post(f"{url}/jobs", json=ASKED, timeout=30).headers["Location"]
    counts: list[int] = []

    def follow() -> None:
        with requests.get(f"{url}{job}/events", stream=True, timeout=60) as answer:
            counts.append(sum(line.startswith(b"event:") for line in answer.iter_lines()))

    threads = [threading.Thread(target=follow) for _ in range(followers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if not followers:
        time.sleep(about_s)
    while (answer := requests.get(url + job, timeout=30).json())["state"] in ("queued", "running"):
        time.sleep(0.2)
    return denoise_s(answer["result"]), statistics.mean(counts) if counts else 0.0


def main() -> None:
    """Measure, and write the page."""
    with server() as running:
        for _ in range(3):
            generated(running.url)
        requested: list[float] = []
        jobs: dict[int, list[tuple[float, float]]] = {count: [] for count in FOLLOWERS}
        used: dict[int, list[float]] = {count: [] for count in FOLLOWERS}
        process = psutil.Process(running.process.pid)
        for _ in range(ROUNDS):
            requested.append(generated(running.url))
            for count in FOLLOWERS:
                before = cpu_s(process)
                jobs[count].append(followed(running.url, count, requested[-1]))
                used[count].append(cpu_s(process) - before)
    median = statistics.median(requested)
    rows = [f"| a request | {median:.4f} | 1 | | | |"]
    cpu = {count: statistics.median(each) for count, each in used.items()}
    sent = statistics.median(events for _, events in jobs[1])
    per_event_ms = 1000 * (cpu[1] - cpu[0]) / sent
    for count, measured in jobs.items():
        ratios = [job / alone for (job, _), alone in zip(measured, requested, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        events = f"{statistics.median(events for _, events in measured):.0f}" if count else ""
        seconds = statistics.median(seconds for seconds, _ in measured)
        ratio = f"{middle:.4f} | {low:.4f} to {high:.4f}"
        rows.append(f"| a job, {count} followers | {seconds:.4f} | {ratio} | {events} | {cpu[count]:.3f} |")
    text = TEXT.format(
        date=datetime.now(UTC).date(),
        rounds=ROUNDS,
        machine=machine(),
        rows="\n".join(rows),
        per_event_ms=per_event_ms,
        step_for_aim_ms=per_event_ms / 0.005,
        step_ms=1000 * median / ASKED["num_inference_steps"],
    )
    PAGE.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
