"""What torch.compile costs and saves: `python -m benchmarks.compiling`, about two minutes on two quiet cores.

Writes docs/benchmarks/compile.md. Each start is a process of its own: what is compiled stays in a process.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import machine
from cache_dit_serving.config.acceleration import CompileSettings
from cache_dit_serving.config.catalog import BUNDLE_ROOT
from cache_dit_serving.config.reading import load_settings
from cache_dit_serving.pipeline.assemble import assemble
from cache_dit_serving.pipeline.environment import quiet_libraries
from cache_dit_serving.pipeline.protocol import Loaded, Sampled, Unwatched
from cache_dit_serving.planning.plan import plan
from cache_dit_serving.planning.resolve import resolve
from cache_dit_serving.schemas.request import GenerateRequest

PAGE = BUNDLE_ROOT / "docs" / "benchmarks" / "compile.md"
ROUNDS = 15
SPEEDS = ("lossless", "balanced")
TEXT = """\
# What torch.compile costs and saves

Written by `python -m benchmarks.compiling` ({date}): the embedded model in float32, 28 steps, `compile: {{}}`.
Seconds of a picture: medians of {rounds} rounds, eager and compiled in turn in one process. Difference: the
greatest of a channel of a pixel, of 0 to 1.

{machine}

| | cache | eager, s | compiled, s | speed-up | difference | cached steps, eager and compiled |
|---|---|---|---|---|---|---|
{rows}

| start, from nothing to ready | seconds |
|---|---|
| eager | {eager:.1f} |
| compiled, empty folder | {cold:.1f} |
| compiled, `compile.folder` of an earlier start | {warm:.1f} |
"""


def started(compiled: Path | None) -> tuple[Loaded, float]:
    settings = load_settings({"CACHE_DIT_SERVING__SPEEDS__WARM_UP": "false"})
    if compiled is not None:
        settings = settings.model_copy(update={"compile": CompileSettings(folder=compiled)})
    begun = time.perf_counter()
    return assemble(settings, lambda stage: None), time.perf_counter() - begun


def draw(loaded: Loaded, speed: str) -> tuple[Sampled, float]:
    fields = {"prompt": "a robot on a yellow background", "seed": 1, "speed": speed}
    call = plan(resolve(GenerateRequest.model_validate(fields), loaded.model)).call
    begun = time.perf_counter()
    drawn = loaded.runner.sample(replace(call, keep_floats=True), Unwatched())
    return drawn, time.perf_counter() - begun


def in_a_process(folder: Path) -> dict[str, Any]:
    words = [sys.executable, "-m", "benchmarks.compiling", str(folder)]
    run = subprocess.run(words, capture_output=True, text=True, check=True, cwd=BUNDLE_ROOT)
    figures: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return figures


def measure(folder: Path) -> None:
    """Both servers in this process: their starts, and pictures in turn."""
    quiet_libraries()
    eager, eager_s = started(None)
    compiled, compiled_s = started(folder)
    taken: dict[str, list[float]] = {}
    rows = []
    for _ in range(ROUNDS):
        for speed in SPEEDS:
            for kind, server in (("eager", eager), ("compiled", compiled)):
                taken.setdefault(f"{kind} {speed}", []).append(draw(server, speed)[1])
    for speed in SPEEDS:
        one, other = (draw(server, speed)[0] for server in (eager, compiled))
        difference = float(np.abs(one.media.array - other.media.array).max())
        slow, fast = (statistics.median(taken[f"{kind} {speed}"]) for kind in ("eager", "compiled"))
        steps = f"{one.record.cache.cached_steps}, {other.record.cache.cached_steps}"
        rows.append(f"| 96 x 96 | {speed} | {slow:.3f} | {fast:.3f} | {slow / fast:.2f} | {difference:.1e} | {steps} |")
    print(json.dumps({"rows": rows, "eager": eager_s, "compiled": compiled_s}))


def main() -> None:
    """Measure, and write the page."""
    with tempfile.TemporaryDirectory() as folder:
        cold = in_a_process(Path(folder))
        warm = in_a_process(Path(folder))
    text = TEXT.format(
        date=datetime.now(UTC).date(),
        rounds=ROUNDS,
        machine=machine(),
        rows="\n".join(cold["rows"]),
        eager=cold["eager"],
        cold=cold["compiled"],
        warm=warm["compiled"],
    )
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(Path(sys.argv[1]))
    else:
        main()
