"""The steps of the image's build: the seconds that each takes, and the megabytes that its layer adds."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

STEP = re.compile(r"STEP \d+/\d+: (.+)")
COMMIT = re.compile(r"COMMIT \S+")
SHOWN_S, SHOWN_MB = 1.0, 1.0
"""A step is shown that takes or adds as much."""


@dataclass(frozen=True)
class Step:
    """One instruction of a Dockerfile.

    Args:
        seconds: Its duration, with the commit of its layer.
    """

    instruction: str
    seconds: float


def timed_run(command: Sequence[str], environ: Mapping[str, str], within_s: float) -> list[Step]:
    """Run a build, print its lines as they come, and return its steps.

    Raises:
        CalledProcessError: It fails, or takes longer.
    """
    began = time.monotonic()
    with subprocess.Popen(
        ["timeout", str(within_s), *command], env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as running:
        assert running.stdout is not None
        found = steps(running.stdout)
    if running.returncode != 0:
        raise subprocess.CalledProcessError(running.returncode, command, f"after {time.monotonic() - began:.0f} s")
    return found


def steps(lines: Iterable[str], clock: Callable[[], float] = time.monotonic) -> list[Step]:
    """Return the steps that buildah names in its lines, which are printed.

    Args:
        clock: Seconds, read at each line.
    """
    found: list[Step] = []
    instruction, began = "", clock()
    for line in lines:
        print(line, end="", flush=True)
        named = STEP.search(line)
        if named is None and not COMMIT.search(line):
            continue
        now = clock()
        if instruction:
            found.append(Step(instruction, now - began))
        instruction, began = ("" if named is None else named[1].strip()), now
    if instruction:
        found.append(Step(instruction, clock() - began))
    return found


def table(found: Sequence[Step], sizes: Sequence[int]) -> list[str]:
    """Return rows of Markdown: seconds and megabytes of the steps that take or add more than a little.

    Args:
        sizes: Bytes of each layer of the image, the oldest first. The newest ones are the steps'; FROM has none.
    """
    made = [step for step in found if not step.instruction.startswith("FROM ")]
    layers = sizes[len(sizes) - len(made) :]
    if len(layers) != len(made):
        raise ValueError(f"{len(sizes)} layers for {len(made)} steps: was it built without --layers?")
    return [
        f"| `{_shortened(step.instruction)}` | {step.seconds:.0f} s | {size / 1e6:.0f} MB |"
        for step, size in zip(made, layers, strict=True)
        if step.seconds >= SHOWN_S or size >= SHOWN_MB * 1e6
    ]


def _shortened(instruction: str, most: int = 100) -> str:
    """The two ends of a long instruction, fit for a cell of a table."""
    if len(instruction) > most:
        instruction = f"{instruction[: most // 2]} ... {instruction[-most // 2 :]}"
    return instruction.replace("|", r"\|")
