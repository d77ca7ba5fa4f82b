"""Where a start of `bentoml serve` goes: `python -m benchmarks.start`, two minutes on two cores.

Writes docs/benchmarks/start.md.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil

from benchmarks.machine import machine
from benchmarks.progress import say
from benchmarks.serving import server
from cache_dit_serving.config.catalog import BUNDLE_ROOT

PAGE = BUNDLE_ROOT / "docs" / "benchmarks" / "start.md"
STARTS = 3
IMPORTS = 3
SUPERVISOR, WORKER = "supervisor, until its worker starts", "worker, until its model's thread starts"
STAGES = {
    "importing torch": "import of torch, diffusers and cache-dit",
    "loading the weights": "load of the weights",
    "trying the cache": "trials of the cache types",
    "warming up": "warm-up",
}
"""Row of the table for the first line of the log that opens so."""
LIBRARIES = {
    "bentoml_cli.cli": "BentoML's command line, in the supervisor",
    "service": "`service.py`, in the supervisor and in each worker",
    "sqlalchemy.orm, alembic.command": "SQLAlchemy and alembic",
    "torch": "torch",
    "torch, torch._dynamo": "torch with torch._dynamo, which diffusers, transformers and cache-dit import",
    "transformers, diffusers": "transformers and diffusers, torch included",
    "cache_dit": "cache-dit, all of these included",
}
"""Modules to import in a fresh process, with the row of the table."""
TIMED = "import time; t = time.process_time(); import {}; print(time.process_time() - t)"
TEXT = """\
# Where a start goes

Written by `python -m benchmarks.start` ({date}): `bentoml serve` of the embedded model until `/readyz` answers 200,
medians of {starts} starts with a warm disk. CPU seconds are of all its processes.

{machine}

| | seconds |
|---|---|
{stages}
| **ready after** | **{ready_s:.2f}** |
| CPU of all processes | {cpu_s:.2f} |

## Imports

CPU seconds of an import in a fresh process, medians of {imports}.

| | CPU s |
|---|---|
{libraries}

A start is one chain: the supervisor imports `service.py` before BentoML starts a worker, and a worker's imports take
turns at one interpreter lock, whatever threads they run on.

What remains: torch, and torch._dynamo, which diffusers and transformers import for their decorators, and torchao, where
it is installed, through torch._inductor. Only a stand-in for torch._dynamo would spare it; none is in use.
`speeds.warm_up` promises measured rates before the server is ready, so its four pictures stay in the chain.

## What overlap could save

A worker is one process of Python, from its first import to its warm-up: {worker_s:.2f} of the {ready_s:.2f} s.
A second core has no part in them. If a worker were forked from a process that begins with the command, the
supervisor's {supervisor_s:.2f} s would be saved, and no more. It is not done. BentoML's process manager starts
a worker by its command line, watches that process, and starts another if it ends: a fork of another process
needs a manager of our own. A process that has started CUDA cannot be forked.

Ready in 5 s takes less work: torch._dynamo is {dynamo_s:.2f} CPU s of the imports, the warm-up {warm_up_s:.2f}
s. An operator who needs no `deadline_s` sets `speeds.warm_up: false`. A few steps are then drawn instead of
four pictures.
"""


@dataclass(frozen=True)
class Start:
    """A start that was measured."""

    ready_s: float
    cpu_s: float
    stage_s: dict[str, float]
    """Seconds of each row, in their order."""


def measured_start() -> Start:
    """Start a server, and end it once it is ready."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.time()
        with server({"CACHE_DIT_SERVING__SERVER__LOG_FORMAT": "json"}, Path(folder) / "server.log") as running:
            processes = [root := psutil.Process(running.process.pid), *root.children(recursive=True)]
            cpu_s = sum(sum(process.cpu_times()[:2]) for process in processes)
            # Both by the kernel's clock of processes, which may differ from the time of day by a second.
            worker = began + running.worker().create_time() - root.create_time()
        log = (Path(folder) / "server.log").read_text(encoding="utf-8")
    return Start(running.ready_s, cpu_s, stages(log, began, worker, began + running.ready_s))


def stages(log: str, began: float, worker: float, ready: float) -> dict[str, float]:
    """Return the seconds of each row of the table, by the log's lines and the start of the worker's process."""
    at = {SUPERVISOR: began, WORKER: worker}
    for line in filter(lambda line: line.startswith("{"), log.splitlines()):
        entry = json.loads(line)
        for opening, row in STAGES.items():
            if re.match(opening, entry["message"]):
                at.setdefault(row, datetime.fromisoformat(entry["time"]).timestamp())
    return {row: then - since for (row, since), then in zip(at.items(), [*[*at.values()][1:], ready], strict=True)}


def import_cpu_s(modules: str) -> float:
    """Return the CPU seconds of an import in a fresh process."""
    command = [sys.executable, "-W", "ignore", "-c", TIMED.format(modules)]
    ran = subprocess.run(command, cwd=BUNDLE_ROOT, capture_output=True, text=True, check=True)
    return float(ran.stdout.split()[-1])


def main() -> None:
    """Measure, and write the page."""
    say(f"{STARTS} starts")
    starts = [measured_start() for _ in range(STARTS)]
    stage_s = {row: statistics.median(start.stage_s[row] for start in starts) for row in starts[0].stage_s}
    ready_s = statistics.median(start.ready_s for start in starts)
    say(f"imports, {IMPORTS} of each")
    cpu_s = {modules: statistics.median(import_cpu_s(modules) for _ in range(IMPORTS)) for modules in LIBRARIES}
    text = TEXT.format(
        date=datetime.now(UTC).date(),
        starts=STARTS,
        imports=IMPORTS,
        machine=machine(),
        stages="\n".join(f"| {row} | {seconds:.2f} |" for row, seconds in stage_s.items()),
        ready_s=ready_s,
        cpu_s=statistics.median(start.cpu_s for start in starts),
        libraries="\n".join(f"| {row} | {cpu_s[modules]:.2f} |" for modules, row in LIBRARIES.items()),
        worker_s=ready_s - stage_s[SUPERVISOR],
        supervisor_s=stage_s[SUPERVISOR],
        dynamo_s=cpu_s["torch, torch._dynamo"] - cpu_s["torch"],
        warm_up_s=stage_s[STAGES["warming up"]],
    )
    PAGE.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
