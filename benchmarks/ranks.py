"""A model on two ranks against one process: `python -m benchmarks.ranks`, about three minutes on two quiet cores.

Writes docs/benchmarks/ranks.md.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from typing import Any

from benchmarks.machine import machine
from cache_dit_serving.config.acceleration import ParallelismSettings
from cache_dit_serving.config.catalog import BUNDLE_ROOT
from cache_dit_serving.config.reading import load_settings
from cache_dit_serving.config.settings import Settings
from cache_dit_serving.pipeline.assemble import assemble
from cache_dit_serving.pipeline.environment import quiet_libraries
from cache_dit_serving.pipeline.protocol import Loaded, Unwatched
from cache_dit_serving.planning.plan import plan
from cache_dit_serving.planning.resolve import resolve
from cache_dit_serving.ranks.ranked import RankedRunner
from cache_dit_serving.schemas.request import GenerateRequest

PAGE = BUNDLE_ROOT / "docs" / "benchmarks" / "ranks.md"
ROUNDS = 7
KINDS = {
    "one process, 1 thread": ("one", 1),
    "one process, 2 threads": ("one", 2),
    "Ulysses, 2 ranks of 1 thread": ("ulysses_size", 1),
    "tensor parallelism, 2 ranks of 1 thread": ("tp_size", 1),
}
TEXT = """\
# What ranks cost

Written by `python -m benchmarks.ranks` ({date}): the embedded model (3.8 million parameters, 36 + 32 tokens), 28
steps, medians of {rounds} pictures, each row a process or a group of its own, one after the other.

{machine}

| | start, s | start again, s | no cache, s | cached (`balanced`), s | beside the pipeline, ms a step |
|---|---|---|---|---|---|
{rows}

Start: with the imports of torch, diffusers and cache-dit, for ranks in the process that forks them. Start again: after
a rank was lost.

Beside the pipeline: what a picture took longer than the pipeline itself on rank 0, by its number of steps; the
messages between the server and its ranks, and the picture's way back. The exchange between the ranks is part of the
steps.

So small a model on a CPU gains nothing by ranks. GPUs were not measured;
`python -m benchmarks.gpu_ranks --ranks 1 2 4 8` does so, with a model of FLUX.1's size.

{estimate}"""
ESTIMATE = """\
## An estimate for GPUs

On paper, not measured: what Ulysses moves in one forward pass without the cache. Each block's attention exchanges
queries, keys, values and its output, each token's share once: a GPU of N sends 4 x blocks x (tokens / N) x width x
2 bytes x (N - 1) / N. At {bandwidth} GB/s in one direction (NVLink of an H100 or H200, by its data sheet), without
overlap or latency:

| model | blocks, width, tokens | 2 GPUs | 4 GPUs | 8 GPUs |
|---|---|---|---|---|
{rows}

Over PCIe 5 (64 GB/s) it takes seven times as long. A step that is reused computes and exchanges only the first and last
blocks.
"""
NVLINK_GB_S = 450
MODELS = {
    "FLUX.1, 1024 x 1024": (57, 3072, 4096 + 512),
    "Qwen-Image, 1328 x 1328": (60, 3072, 6889 + 256),
    "Wan 2.1 14B, 1280 x 720 x 81": (40, 5120, 21 * 45 * 80),
}
"""Blocks and width by the models' configurations, and tokens of picture and prompt."""


def estimate() -> str:
    """Bytes and milliseconds of one forward pass."""
    rows = []
    for name, (blocks, width, tokens) in MODELS.items():
        cells = []
        for ranks in (2, 4, 8):
            sent = 4 * blocks * tokens / ranks * width * 2 * (ranks - 1) / ranks
            cells.append(f"{sent / 1e9:.2f} GB, {sent / NVLINK_GB_S / 1e6:.1f} ms")
        rows.append(f"| {name} | {blocks}, {width:,}, {tokens:,} | {' | '.join(cells)} |")
    return ESTIMATE.format(bandwidth=NVLINK_GB_S, rows="\n".join(rows))


def measure(kind: str) -> None:
    """One row, in this process."""
    quiet_libraries()
    settings = load_settings({"CACHE_DIT_SERVING__SPEEDS__WARM_UP": "false"})
    figures: dict[str, Any] = {"beside": []}
    loaded, figures["start"] = started(settings, kind)
    loaded.runner.close()
    loaded, figures["start again"] = started(settings, kind)
    for speed in ("lossless", "balanced"):
        figures[speed] = statistics.median(picture(loaded, speed, figures["beside"]) for _ in range(ROUNDS))
    loaded.runner.close()
    figures["beside"] = statistics.median(figures["beside"])
    print(json.dumps(figures))


def started(settings: Settings, kind: str) -> tuple[Loaded, float]:
    """The loaded model, and the seconds that it took."""
    begun = time.perf_counter()
    if kind == "one":
        loaded = assemble(settings, lambda stage: None)
    else:
        spread = settings.model_copy(update={"parallelism": ParallelismSettings(**{kind: 2})})
        loaded = RankedRunner.start(spread, lambda stage: None)
    return loaded, time.perf_counter() - begun


def picture(loaded: Loaded, speed: str, beside: list[float]) -> float:
    fields = {"prompt": "a robot on a yellow background", "seed": 1, "speed": speed}
    call = plan(resolve(GenerateRequest.model_validate(fields), loaded.model)).call
    begun = time.perf_counter()
    record = loaded.runner.sample(call, Unwatched()).record
    seconds = time.perf_counter() - begun
    beside.append((seconds - record.seconds) / call.num_inference_steps * 1000)
    return seconds


def main() -> None:
    """Measure, and write the page."""
    rows = []
    for name, (kind, threads) in KINDS.items():
        environ = os.environ | {"OMP_NUM_THREADS": str(threads)}
        words = [sys.executable, "-m", "benchmarks.ranks", kind]
        run = subprocess.run(words, env=environ, cwd=BUNDLE_ROOT, capture_output=True, text=True, check=True)
        row = json.loads(run.stdout.splitlines()[-1])
        starts = f"{row['start']:.1f} | {row['start again']:.1f}"
        cells = f"{starts} | {row['lossless']:.3f} | {row['balanced']:.3f} | {row['beside']:.2f}"
        rows.append(f"| {name} | {cells} |")
    date = datetime.now(UTC).date()
    text = TEXT.format(date=date, rounds=ROUNDS, machine=machine(), rows="\n".join(rows), estimate=estimate())
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(sys.argv[1])
    else:
        main()
