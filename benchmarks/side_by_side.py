"""Figures and tables of two servers that were measured side by side, in rounds. Pure: it starts nothing."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cache_dit_serving.measure.load.outcome import Outcome

LATENCY_GOAL, THROUGHPUT_GOAL = 0.98, 1.05
"""Greatest ratio of latencies and least ratio of throughputs, this server's over the old one's."""
IN_PIPELINE = ("encode_prompt", "denoise", "decode", "generate")
"""Stages within the pipeline's call: this server's, and the old one's single time."""
OLD, NEW = "cache_dit.serve", "this server"
SIDES = (OLD, NEW)


@dataclass(frozen=True)
class Round:
    """Requests of one server at one load in one round."""

    outcomes: Sequence[Outcome]
    cpu_s: float = 0.0
    """CPU seconds of all processes of the server."""

    def __post_init__(self) -> None:
        """Refuse requests that failed: their figures would compare something else.

        Raises:
            RuntimeError: names the first error.
        """
        failed = [outcome for outcome in self.outcomes if outcome.error is not None]
        if failed:
            raise RuntimeError(f"{len(failed)} requests failed: {failed[0].error} {failed[0].message or ''}")

    def latency_s(self) -> float:
        """Return the median latency."""
        return statistics.median(outcome.latency for outcome in self.outcomes)

    def per_minute(self) -> float:
        """Return the outputs per minute, over all of them.

        Both servers draw one picture at a time, so the load is full until the last answer. A round of 8 clients and
        10 requests has two answers until the last start: too few, and the first waits for the arrival of all.
        """
        return 60 * len(self.outcomes) / max(outcome.ended for outcome in self.outcomes)

    def pipeline_s(self) -> float:
        """Return the median seconds of the pipeline's call, by the server's own clock."""
        return statistics.median(_pipeline_s(outcome) for outcome in self.outcomes)

    def rest_ms(self) -> float:
        """Return the median milliseconds of a latency outside of the pipeline's call."""
        return 1000 * statistics.median(outcome.latency - _pipeline_s(outcome) for outcome in self.outcomes)

    def cpu_per_output(self) -> float:
        """Return the CPU seconds per output."""
        return self.cpu_s / len(self.outcomes)


def _pipeline_s(outcome: Outcome) -> float:
    return sum(outcome.stages.get(stage, 0.0) for stage in IN_PIPELINE)


Figure = Callable[[Round], float]


class Compared(NamedTuple):
    """A figure of both servers: medians of the rounds, and of their ratios."""

    old: float
    new: float
    ratio: float
    low: float
    high: float
    """Greatest ratio of a round."""

    def text(self) -> str:
        """Return the ratio with the least and the greatest of the rounds."""
        return f"{self.ratio:.3f} ({self.low:.3f} to {self.high:.3f})"

    def goal(self, *, at_most: float = float("inf"), at_least: float = 0.0) -> str:
        """Return if the ratio meets a goal, and if the rounds agree on it."""
        found = {at_least <= ratio <= at_most for ratio in (self.ratio, self.low, self.high)}
        met = "met" if at_least <= self.ratio <= at_most else "**missed**"
        return met if len(found) == 1 else f"{met}, the rounds disagree"


@dataclass(frozen=True)
class Pair:
    """Both servers at one load: a round of one stands beside that of the other."""

    threads: int
    users: int
    rounds: Mapping[str, list[Round]]

    def compare(self, figure: Figure) -> Compared:
        """Return a figure of both servers, and the ratio of the new one's to the old one's."""
        old, new = ([figure(each) for each in self.rounds[side]] for side in SIDES)
        ratios = [b / a for a, b in zip(old, new, strict=True)]
        return Compared(
            statistics.median(old), statistics.median(new), statistics.median(ratios), min(ratios), max(ratios)
        )

    def requests(self) -> int:
        """Return the number of requests to each server."""
        return sum(len(each.outcomes) for each in self.rounds[OLD])


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [f"| {' | '.join(line)} |" for line in (columns, *rows)]
    return "\n".join([lines[0], "|---" * len(columns) + "|", *lines[1:]])


def latency_table(pairs: Sequence[Pair]) -> str:
    """Return the latencies of one client."""
    rows = []
    for pair in _alone(pairs):
        found = pair.compare(Round.latency_s)
        values = [f"{found.old:.3f}", f"{found.new:.3f}", found.text(), found.goal(at_most=LATENCY_GOAL)]
        rows.append([f"{pair.threads}", *values, f"{pair.requests()}"])
    return table(["threads", f"{OLD}, s", f"{NEW}, s", "ratio", f"at most {LATENCY_GOAL}", "requests to each"], rows)


def throughput_table(pairs: Sequence[Pair]) -> str:
    """Return the outputs per minute, from the first request of a round to its last answer."""
    rows = []
    for pair in pairs:
        found = pair.compare(Round.per_minute)
        values = [f"{found.old:.1f}", f"{found.new:.1f}", found.text(), found.goal(at_least=THROUGHPUT_GOAL)]
        rows.append([f"{pair.threads}", f"{pair.users}", *values, f"{pair.requests()}"])
    goal = f"at least {THROUGHPUT_GOAL}"
    return table(["threads", "clients", f"{OLD}, 1/min", f"{NEW}, 1/min", "ratio", goal, "requests to each"], rows)


def cpu_table(pairs: Sequence[Pair]) -> str:
    """Return the CPU seconds per picture of all processes of a server."""
    rows = []
    for pair in pairs:
        found = pair.compare(Round.cpu_per_output)
        rows.append([f"{pair.threads}", f"{pair.users}", f"{found.old:.3f}", f"{found.new:.3f}", found.text()])
    return table(["threads", "clients", f"{OLD}, s", f"{NEW}, s", "ratio"], rows)


def parts_table(pairs: Sequence[Pair]) -> str:
    """Return a latency's parts: the pipeline's call, and the rest."""
    rows = []
    for pair in _alone(pairs):
        call, rest = pair.compare(Round.pipeline_s), pair.compare(Round.rest_ms)
        parts = [f"{call.old:.4f}", f"{call.new:.4f}", call.text(), f"{rest.old:.1f}", f"{rest.new:.1f}"]
        rows.append([f"{pair.threads}", *parts])
    columns = ["threads", f"call, {OLD}, s", f"call, {NEW}, s", "ratio", f"rest, {OLD}, ms", f"rest, {NEW}, ms"]
    return table(columns, rows)


def verdict(pairs: Sequence[Pair]) -> str:
    """Return a line for each goal that is missed, and the throughput that the best server would have."""
    missed = []
    for pair in pairs:
        load = f"{counted(pair.threads, 'thread')}, {counted(pair.users, 'client')}"
        if pair.users == 1 and (ratio := pair.compare(Round.latency_s).ratio) > LATENCY_GOAL:
            missed.append(f"- {load}: latency is {ratio:.3f} of the old server's, the goal {LATENCY_GOAL}.")
        if (ratio := pair.compare(Round.per_minute).ratio) < THROUGHPUT_GOAL:
            missed.append(f"- {load}: throughput is {ratio:.3f} of the old server's, the goal {THROUGHPUT_GOAL}.")
    if not missed:
        return "All goals are met."
    shares = []
    for pair in _alone(pairs):
        call, latency = pair.compare(Round.pipeline_s), pair.compare(Round.latency_s)
        shares.append(f"{latency.old / call.old:.3f} ({counted(pair.threads, 'thread')})")
    why = (
        "Both servers make one call of the same pipeline at a time, with the same kernels. A server that adds nothing\n"
        f"to the old server's call has this ratio of throughputs: {', '.join(shares)}.\n"
        "More comes from a faster call (this server draws under `torch.inference_mode`), or is noise of the machine."
    )
    return "\n".join(["Missed:", "", *missed, "", why])


def _alone(pairs: Sequence[Pair]) -> list[Pair]:
    return [pair for pair in pairs if pair.users == 1]


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, such as `2 threads`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
