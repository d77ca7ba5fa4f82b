"""A long run under too much traffic: `make soak`, ten minutes, or as long as `SOAK=8h` says.

A server of the embedded model gets four times what it can draw, through every door. It is killed after a third of the
time and ended by SIGTERM after another, and starts again on the same job store.

Writes docs/benchmarks/soak.md, and ends with 1 where a line fails.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import diffusers
import psutil
import requests
import torch

from benchmarks.machine import machine
from benchmarks.progress import say
from benchmarks.serving import RunningServer, server
from benchmarks.soak_doors import DOORS, KINDS, SEEDS, request_of
from benchmarks.soak_lines import Line, Sample, drawn, flat_lines, percentile_99, table
from benchmarks.soak_traffic import Traffic, Twin, pixels_of
from cache_dit_serving.config.catalog import BUNDLE_ROOT
from cache_dit_serving.pipeline.environment import quiet_libraries
from cache_dit_serving.pipeline.load import EMBEDDED_FOLDER
from tests.support.loras import save_lora

PAGE = BUNDLE_ROOT / "docs" / "benchmarks" / "soak.md"
TIMES_CAPACITY = 4
KEPT_JOBS, QUEUE = 100, 12
LIVES = 3
"""Starts of the server: the first life is ended by SIGKILL, the others by SIGTERM."""
LIGHT_MS = 250.0
"""Bound of the 99th percentile of a light route."""
SAMPLES_A_LINE = 12
"""Samples, one in five seconds, for each line of progress."""
UNITS = {"s": 1, "m": 60, "min": 60, "h": 3600}
TEXT = """\
# Soak

Written by `python -m benchmarks.soak` ({date}): {seconds:.0f} s of traffic through every door (generations from words,
from a picture and with a LoRA, as JSON, forms and files; jobs with events, previews and cancels; OpenAI's images,
edits, streams and videos, which this model refuses; comparisons, LoRA loads, flushes, the playground's files;
hostile bodies and pictures; clients that leave before the answer, within a stream or a body), {times} times what the
server can draw. After a third of the time all processes are killed with SIGKILL, after another the server is ended by
SIGTERM; it starts again on the same job store. Growth is the median of the last third of a life less that of its
middle third, the greatest of the three lives. Pictures and jobs are compared with undisturbed twins, pixel by pixel.

{machine} Busy share of the processors by others before the start: {busy:.0f} %.

{table}

Memory grows in steps of about 30 MB, down as well as up. The bodies of hostile pictures have up to 16 MB, and glibc
keeps up to twice as much of an arena that is free, 64 MB at most: the bound is that and 16 MB.
`tests/api/test_body_memory.py` holds that reading a body leaves nothing in use. With `MALLOC_MMAP_THRESHOLD_=1048576`
in the environment of a server glibc gives their memory back at once.

![Memory, threads, descriptors, temporary files and rows over time](soak.svg)

| doors and statuses | times |
|---|---|
{counts}
"""


def seconds_of(text: str) -> float:
    """Return the seconds of a length such as 90s, 10m or 8h.

    Raises:
        ValueError: it is no length.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|min|h)", text)
    if not found:
        raise ValueError(f"SOAK={text}: write a number and s, m or h, such as 90s, 10m or 8h")
    return float(found[1]) * UNITS[found[2]]


def sample(running: RunningServer, folder: Path, at_s: float) -> Sample:
    """Return the state of all processes of the server."""
    memory = threads = descriptors = 0
    supervisor = psutil.Process(running.process.pid)
    for process in (supervisor, *supervisor.children(recursive=True)):
        with suppress(psutil.Error):
            memory += process.memory_info().rss
            threads += process.num_threads()
            descriptors += process.num_fds()
    files, outputs = (sum(len(names) for _, _, names in os.walk(folder / name)) for name in ("tmp", "outputs"))
    with sqlite3.connect(f"file:{folder / 'outputs' / 'jobs.sqlite3'}?mode=ro", uri=True, timeout=30) as store:
        (rows,) = store.execute("SELECT count(*) FROM jobs").fetchone()
    store.close()
    return Sample(at_s, memory / 2**20, threads, descriptors, files, rows, outputs)


def soaked(
    seconds: float, folder: Path, progress: Callable[[str], None] = lambda line: None
) -> tuple[Traffic, list[list[Sample]]]:
    """Run the traffic over all lives of the server, and return it with the samples of each life.

    Args:
        progress: takes a line each minute.
    """
    environ = environment(folder)
    lives: list[list[Sample]] = []
    traffic: Traffic | None = None
    elapsed = 0.0
    for life in range(LIVES):
        with server(environ, folder / f"server-{life}.log") as running:
            if traffic is None:
                twins, picture_s = undisturbed(running.url)
                traffic = Traffic(running.url, picture_s / TIMES_CAPACITY, twins, DOORS)
                traffic.start()
            traffic.url = running.url
            traffic.up.set()
            samples: list[Sample] = []
            began = time.monotonic()
            while (at := time.monotonic() - began) < seconds / LIVES:
                samples.append(sample(running, folder, elapsed + at))
                if len(samples) % SAMPLES_A_LINE == 1:
                    start = f"start {life + 1} of {LIVES}"
                    progress(f"{elapsed + at:.0f} of {seconds:.0f} s, {start}: {so_far(traffic, samples)}")
                time.sleep(min(5.0, seconds / 40))
            elapsed += at
            lives.append(samples)
            if life == LIVES - 1:
                traffic.finish()
            else:
                traffic.up.clear()
            if not life:
                kill(running)
    assert traffic
    return traffic, lives


def so_far(traffic: Traffic, samples: list[Sample]) -> str:
    """Return the memory now, and what has been sent, compared and found wrong."""
    found = len(traffic.wrong) + len(traffic.lost)
    sent = sum(times for name, times in traffic.counts.items() if name.startswith("status "))
    return (
        f"{samples[-1].memory_mb:.0f} MB, {sent} answers, {traffic.compared} pictures compared, {found} wrong or lost"
    )


def environment(folder: Path) -> dict[str, str]:
    """Return the variables of the server, whose files all lie in a folder."""
    for name in ("tmp", "loras"):
        (folder / name).mkdir()
    pipe = diffusers.DiffusionPipeline.from_pretrained(EMBEDDED_FOLDER, dtype=torch.float32)
    save_lora(pipe, folder / "loras" / "soft.safetensors", seed=7)
    settings = {
        "OUTPUTS__ROOT": str(folder / "outputs"),
        "MODEL__LORA_FOLDER": str(folder / "loras"),
        "LIMITS__MAX_QUEUE": str(QUEUE),
        "LIMITS__MAX_KEPT_JOBS": str(KEPT_JOBS),
    }
    return {f"CACHE_DIT_SERVING__{name}": value for name, value in settings.items()} | {"TMPDIR": str(folder / "tmp")}


def undisturbed(url: str) -> tuple[dict[Twin, str], float]:
    """Return the hash of the picture of each kind and seed, drawn alone, and the seconds of a picture."""
    requests.post(f"{url}/loras/soft", timeout=60).raise_for_status()
    twins = {}
    began = time.perf_counter()
    for twin in itertools.product(KINDS, SEEDS):
        answer = requests.post(f"{url}/generate", json=request_of(twin), headers={"Accept": "image/png"}, timeout=60)
        answer.raise_for_status()
        twins[twin] = pixels_of(answer.content)
    return twins, (time.perf_counter() - began) / len(twins)


def kill(running: RunningServer) -> None:
    """Kill all processes of the server."""
    supervisor = psutil.Process(running.process.pid)
    processes = [supervisor, *supervisor.children(recursive=True)]
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, 10)


def lines_of(traffic: Traffic, lives: list[list[Sample]]) -> list[Line]:
    """Return every line of the soak."""
    light = [
        Line(f"`GET {path}`, 99th percentile", percentile_99(taken), LIGHT_MS, "ms")
        for path, taken in traffic.light_ms.items()
    ]
    return [
        *flat_lines(lives, KEPT_JOBS + QUEUE + 20),
        Line("jobs lost", len(traffic.lost), 0),
        Line(f"5xx other than 503 with Retry-After, and pictures of {traffic.compared} unlike their twins",
             len(traffic.wrong) + (not traffic.compared), 0),
        *light,
    ]  # fmt: skip


def main() -> None:
    """Soak, print, write the page, and end with 1 where a line fails."""
    seconds = seconds_of(os.environ.get("SOAK") or "10m")
    busy = psutil.cpu_percent(1)
    quiet_libraries()
    with tempfile.TemporaryDirectory() as folder:
        traffic, lives = soaked(seconds, Path(folder), say)
    lines = lines_of(traffic, lives)
    counts = "\n".join(f"| {name.replace('_', ' ')} | {times} |" for name, times in sorted(traffic.counts.items()))
    text = TEXT.format(
        date=datetime.now(UTC).date(),
        seconds=seconds,
        times=TIMES_CAPACITY,
        machine=machine(),
        busy=busy,
        table=table(lines),
        counts=counts,
    )
    PAGE.write_text(text, encoding="utf-8")
    PAGE.with_suffix(".svg").write_text(drawn([each for life in lives for each in life]), encoding="utf-8")
    print(text)
    print(json.dumps({"lost": traffic.lost[:20], "wrong": traffic.wrong[:20]}, indent=1), file=sys.stderr)
    sys.exit(0 if all(line.holds for line in lines) else 1)


if __name__ == "__main__":
    main()
