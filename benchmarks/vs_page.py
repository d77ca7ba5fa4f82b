"""The page of the comparison with cache_dit.serve, from what was measured. Pure: it starts nothing."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from benchmarks import old_server
from benchmarks.side_by_side import (
    LATENCY_GOAL,
    NEW,
    OLD,
    SIDES,
    THROUGHPUT_GOAL,
    Pair,
    Round,
    counted,
    cpu_table,
    latency_table,
    parts_table,
    table,
    throughput_table,
    verdict,
)
from benchmarks.vs_servers import BODY, CACHE_FLAGS

SHORT_PROMPT = 32
"""Tokens of a prompt in the model's configuration: the length that it was trained with."""
LEFT_STEPS = 40
QUIET_CORES = 0.1
"""Cores that other programs may use before the page warns of it."""

TEXT = """\
# Side by side with cache_dit.serve

Written by `python -m benchmarks.vs_cache_dit_serve` ({date}): the server of cache-dit {version}, and this one by
`cache-dit-serve`. Both run; one is measured while the other is idle, in turn: {rounds}. The client is
[bench](../bench.md), in a closed loop, on the same machine.

{machine}
The old server: {versions}.
Other programs used {others:.2f} of the {cores} cores during the measurement.{caution}

**The same work.** The embedded model, 96 x 96 px, {steps} steps, and the flags
`{flags}`. {same}
For that, this server's TaylorSeer is off, which the model's configuration has on, and its prompts have 512 tokens:
the old server cannot draw with fewer.

Figures are medians of the rounds' medians; a ratio is the median of the rounds' ratios, in brackets the least and the
greatest. **Goals**: latency at most {latency_goal} of the old server's, throughput at least {throughput_goal}.

## Latency

One client.

{latency}

## Throughput

{throughput}

## Goals

{verdict}

## CPU

CPU seconds of all processes of the server, per picture. On a shared machine this ratio tells more than seconds do.

{cpu}

## Parts of a latency

One client. `call` is the pipeline's, by the server's own clock. `rest` is HTTP, the PNG file, and the client.

{parts}

## Shorter prompts

The same on this server with `max_sequence_length` {short}, the default in the model's configuration.

{shorter}

## A client that leaves

Clients ask for {left_steps} steps and close their connections. The next client asks for {steps} steps: the seconds that
it waits longer than the one before those that leave, median of {repeats}, 1 thread. The old server draws every picture
to its end.

{leaving}

## Start and memory

From the command to the first 200 of `/health`, warm disk: this server draws pictures before it is ready. Memory is that
of all processes of the server. PSS counts a page that several share once.

{memory}
"""


class Memory(NamedTuple):
    """Start and memory of a server."""

    threads: int
    name: str
    ready_s: float
    processes: int
    ready_mb: tuple[float, float]
    """RSS and PSS."""
    loaded_mb: tuple[float, float]


@dataclass
class Others:
    """CPU of other programs: everything but the servers and this process."""

    seconds: float = 0.0
    cpu_s: float = 0.0

    @property
    def cores(self) -> float:
        """Cores in use, on average."""
        return self.cpu_s / self.seconds if self.seconds else 0.0

    def add(self, before: tuple[float, float], after: tuple[float, float]) -> None:
        """Add the time between two values of `others_clock`."""
        self.seconds += after[0] - before[0]
        self.cpu_s += max(0.0, after[1] - before[1])


@dataclass
class Measured:
    """Everything that the page tells of a run."""

    same: str = ""
    pairs: list[Pair] = field(default_factory=list)
    shorter: dict[int, list[Round]] = field(default_factory=dict)
    """Rounds of this server with short prompts, by threads."""
    leaving: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    memory: list[Memory] = field(default_factory=list)
    others: Others = field(default_factory=Others)


def page_of(measured: Measured, conditions: Mapping[str, str]) -> str:
    """Return the page.

    Args:
        conditions: `date`, `machine`, `cores`, and the old server's `versions`.
    """
    others = measured.others.cores
    caution = " The machine is shared: seconds are longer than on a quiet one." if others > QUIET_CORES else ""
    return TEXT.format(
        **conditions,
        version=old_server.VERSION,
        rounds=_rounds(measured.pairs),
        others=others,
        caution=caution,
        steps=BODY["num_inference_steps"],
        flags=" ".join(CACHE_FLAGS),
        same=measured.same,
        latency_goal=LATENCY_GOAL,
        throughput_goal=THROUGHPUT_GOAL,
        latency=latency_table(measured.pairs),
        throughput=throughput_table(measured.pairs),
        verdict=verdict(measured.pairs),
        cpu=cpu_table(measured.pairs),
        parts=parts_table(measured.pairs),
        short=SHORT_PROMPT,
        shorter=_shorter_table(measured),
        left_steps=LEFT_STEPS,
        repeats=max(len(each) for waits in measured.leaving.values() for each in waits.values()),
        leaving=_leaving_table(measured.leaving),
        memory=_memory_table(measured.memory),
    )


def _rounds(pairs: Sequence[Pair]) -> str:
    """Return the rounds by the number of threads, which may end early."""
    counts = {pair.threads: len(pair.rounds[OLD]) for pair in pairs}
    return ", ".join(
        f"{counted(count, 'round')} with {counted(threads, 'thread')}" for threads, count in counts.items()
    )


def _shorter_table(measured: Measured) -> str:
    rows = []
    for pair in measured.pairs:
        if pair.users == 1:
            short = Pair(pair.threads, 1, {OLD: pair.rounds[OLD], NEW: measured.shorter[pair.threads]})
            found = short.compare(Round.latency_s)
            rows.append([f"{pair.threads}", f"{found.old:.3f}", f"{found.new:.3f}", found.text()])
    return table(["threads", f"{OLD}, 512 tokens, s", f"{NEW}, s", "ratio"], rows)


def _leaving_table(leaving: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    rows = [[what, *(f"{statistics.median(waits[name]):.2f}" for name in SIDES)] for what, waits in leaving.items()]
    return table(["leaving", f"{OLD}, s", f"{NEW}, s"], rows)


def _memory_table(memory: Sequence[Memory]) -> str:
    rows = []
    for each in memory:
        sizes = [f"{rss:.0f} ({pss:.0f})" for rss, pss in (each.ready_mb, each.loaded_mb)]
        rows.append([f"{each.threads}", each.name, f"{each.ready_s:.1f}", f"{each.processes}", *sizes])
    columns = ["threads", "server", "ready, s", "processes", "RSS (PSS) when ready, MB", "after the load, MB"]
    return table(columns, rows)
