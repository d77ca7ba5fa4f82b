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

from benchmarks.ranks import started
from benchmarks.run import machine
from cache_dit_serving.config.catalog import BUNDLE_ROOT
from cache_dit_serving.config.reading import load_settings
from cache_dit_serving.pipeline.environment import quiet_libraries
from cache_dit_serving.pipeline.protocol import Unwatched
from cache_dit_serving.planning.plan import plan
from cache_dit_serving.planning.resolve import resolve
from cache_dit_serving.schemas.request import GenerateRequest

PAGE = BUNDLE_ROOT / "docs" / "benchmarks" / "guidance.md"
ROUNDS = 9
SIDES = (96, 192, 256)
SPEEDS = ("lossless", "balanced")
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

Two is the most that two ranks can reach. What is missing: the first step makes one pass after the other (1 of 28), and
each step ends with an exchange of the results, which two processes reach at slightly different times. The pictures and
the reused steps are those of one process, to the bit.
"""


def measure(kind: str) -> None:
    """Print the median seconds of the denoising loop by side and speed, as JSON."""
    quiet_libraries()
    environment = {"CACHE_DIT_SERVING__SPEEDS__WARM_UP": "false", "CACHE_DIT_SERVING__MODEL__SCHEDULERS": "{}"}
    loaded, _ = started(load_settings(environment), kind)
    figures: dict[str, float] = {}
    fields = {"prompt": "a robot on a yellow background", "seed": 1, "true_cfg_scale": 4.0, "negative_prompt": "blue"}
    for side in SIDES:
        for speed in SPEEDS:
            request = GenerateRequest.model_validate(fields | {"speed": speed, "width": side, "height": side})
            call = plan(resolve(request, loaded.model)).call
            records = [loaded.runner.sample(call, Unwatched()).record for _ in range(1 + ROUNDS)][1:]
            figures[f"{side} px, {speed}"] = statistics.median(record.denoise_s for record in records)
    loaded.runner.close()
    print(json.dumps(figures))


def main() -> None:
    """Measure, and write the page."""
    found: dict[str, dict[str, float]] = {}
    for name, (kind, threads) in KINDS.items():
        environ = os.environ | {"OMP_NUM_THREADS": str(threads)}
        words = [sys.executable, "-m", "benchmarks.guidance", kind]
        run = subprocess.run(words, env=environ, cwd=BUNDLE_ROOT, capture_output=True, text=True, check=True)
        found[name] = json.loads(run.stdout.splitlines()[-1])
    *others, shared = found
    columns = list(found[shared])
    rows = [f"| {name} | {' | '.join(f'{row[each]:.3f}' for each in columns)} |" for name, row in found.items()]
    ratios = [
        f"| as {name} | {' | '.join(f'{found[name][each] / found[shared][each]:.2f}' for each in columns)} |"
        for name in others
    ]
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
        measure(sys.argv[1])
    else:
        main()
