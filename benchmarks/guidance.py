"""Guidance on two ranks against one process: `python -m benchmarks.guidance`, about two minutes on two quiet cores.

Writes docs/benchmarks/guidance.md.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from datetime import UTC, datetime
from typing import Any

from benchmarks.machine import machine
from benchmarks.ranks import started
from cache_dit_serving.config.catalog import BUNDLE_ROOT
from cache_dit_serving.config.reading import load_settings
from cache_dit_serving.pipeline.environment import quiet_libraries
from cache_dit_serving.pipeline.protocol import Unwatched
from cache_dit_serving.planning.plan import plan
from cache_dit_serving.planning.resolve import resolve
from cache_dit_serving.schemas.request import GenerateRequest

PAGE = BUNDLE_ROOT / "docs" / "benchmarks" / "guidance.md"
ROUNDS = 5
SIDES = (96, 256, 384)
SPEEDS = ("lossless", "balanced")
APART = "two processes of 1 thread at once, one pass a step each"
KINDS = {
    "one process, 1 thread": ("one", 1),
    "one process, 2 threads": ("one", 2),
    "`guidance: 2`, 2 ranks of 1 thread": ("guidance", 1),
}
TEXT = """\
# Guidance on two ranks

Written by `python -m benchmarks.guidance` ({date}): the embedded model with `true_cfg_scale` 4, two forward passes a
step, 28 steps; seconds of the denoising loop, medians of {rounds} pictures. Each row is a process or a group of its
own, one after the other, on two cores.

{machine}

| | {head} |
|---|{rule}|
{rows}

| times as fast, two ranks of 1 thread | {head} |
|---|{rule}|
{ratios}

The goal is 1.8. The last row is the most that this machine allows: two processes that draw at once without guidance and
without any exchange, each at the work of one rank. The first step makes one pass after the other (1 of 28), and each
step ends with an exchange: 1 ms of it is sending, the rest waiting for the slower rank, 3 to 4 ms here in all. So a
larger picture gains more, and a step that the cache makes short gains less. The pictures and the reused steps are those
of one process, to the bit.
"""


def measure(kind: str, *, guided: bool = True) -> None:
    """Print the median seconds of the denoising loop by side and speed, as JSON."""
    quiet_libraries()
    environment = {"CACHE_DIT_SERVING__SPEEDS__WARM_UP": "false", "CACHE_DIT_SERVING__MODEL__SCHEDULERS": "{}"}
    settings = load_settings(environment)
    # Other sizes than those that its weights were trained for: here they are work, not pictures.
    limits = settings.limits.model_copy(update={"sizes": None, "max_side": max(SIDES), "max_pixel_steps": 10**12})
    loaded, _ = started(settings.model_copy(update={"limits": limits}), kind)
    figures: dict[str, float] = {}
    fields: dict[str, Any] = {"prompt": "a robot on a yellow background", "seed": 1}
    if guided:
        fields |= {"true_cfg_scale": 4.0, "negative_prompt": "blue"}
    for side in SIDES:
        for speed in SPEEDS:
            request = GenerateRequest.model_validate(fields | {"speed": speed, "width": side, "height": side})
            call = plan(resolve(request, loaded.model)).call
            records = [loaded.runner.sample(call, Unwatched()).record for _ in range(1 + ROUNDS)][1:]
            figures[f"{side} px, {speed}"] = statistics.median(record.denoise_s for record in records)
    loaded.runner.close()
    print(json.dumps(figures))


def run(kind: str, threads: int, *, copies: int = 1) -> dict[str, float]:
    """Return the figures of a process of its own, or of the slowest of several at once."""
    environ = os.environ | {"OMP_NUM_THREADS": str(threads)}
    words = [sys.executable, "-m", "benchmarks.guidance", kind]
    processes = [subprocess.Popen(words, env=environ, cwd=BUNDLE_ROOT, stdout=subprocess.PIPE) for _ in range(copies)]
    printed = [process.communicate()[0] for process in processes]
    figures = [json.loads(text.splitlines()[-1]) for text in printed]
    return {name: max(each[name] for each in figures) for name in figures[0]}


def main() -> None:
    """Measure, and write the page."""
    found = {name: run(kind, threads) for name, (kind, threads) in KINDS.items()}
    *others, shared = found
    columns = list(found[shared])
    found[APART] = run("apart", 1, copies=2)
    rows = [f"| {name} | {' | '.join(f'{row[each]:.3f}' for each in columns)} |" for name, row in found.items()]
    ratios = [
        f"| as {name} | {' | '.join(f'{found[name][each] / found[shared][each]:.2f}' for each in columns)} |"
        for name in others
    ]
    most = " | ".join(f"{found[others[0]][each] / found[APART][each]:.2f}" for each in columns)
    ratios.append(f"| the most here: {APART}, as {others[0]} | {most} |")
    text = TEXT.format(
        date=datetime.now(UTC).date(),
        rounds=ROUNDS,
        machine=machine(),
        head=" | ".join(columns),
        rule="---|" * (len(columns) - 1) + "---",
        rows="\n".join(rows),
        ratios="\n".join(ratios),
    )
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        kind = sys.argv[1]
        measure("one" if kind == "apart" else kind, guided=kind != "apart")
    else:
        main()
