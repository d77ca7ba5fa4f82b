"""Remarks on a benchmark: how to read it, and what makes its figures doubtful."""

from __future__ import annotations

from collections.abc import Iterator

from cache_dit_serving.measure.load.results import BenchResult, PointResult

BUSY_CLIENT = 0.8
"""CPU of the client, as a share of one core, from which it may be the bottleneck."""
LATE_SHARE = 0.05
"""Client's own delay, as a share of the median latency, from which the figures are doubtful."""
CLOSED = (
    "Closed loop: each user waits for an answer before the next request. A server that stalls gets fewer requests "
    "meanwhile, so a stall shows in few latencies (coordinated omission). Read them as those of so many users who "
    "wait; measure traffic that does not wait with --rate."
)
OPEN = (
    "Open loop: requests arrive at random (Poisson) and do not wait for each other. Latency counts from the time at "
    "which a request was due, so a stall shows in every request that fell due meanwhile."
)


def remarks(result: BenchResult) -> list[str]:
    """Return the remarks in the order of their weight."""
    kinds = {point.load.kind for point in result.points}
    found = ["Interrupted: the last point holds the requests that had ended."] if result.interrupted else []
    if not result.points:
        found.append("No request has ended.")
    found += [text for kind, text in (("closed", CLOSED), ("open", OPEN)) if kind in kinds]
    return found + [f"{point.load.label()}: {text}" for point in result.points for text in _remarks(point)]


def _remarks(point: PointResult) -> Iterator[str]:
    if timeouts := sum(error.count for error in point.errors if error.kind == "timeout"):
        yield f"{timeouts} requests were given up after --timeout. They have no latency: high percentiles are too low."
    if point.offered_rate and point.achieved_rate and point.achieved_rate < 0.9 * point.offered_rate:
        yield (
            f"the server kept up with {point.achieved_rate:.3g} of {point.offered_rate:.3g} requests/s. Above its "
            "capacity the queue grows, and latency follows the length of the measurement."
        )
    if point.held_back:
        yield "arrivals waited for --max-in-flight; their latency counts that wait."
    if point.client_cpu > BUSY_CLIENT:
        yield f"the client used {point.client_cpu:.0%} of a core and may itself be the bottleneck."
    median = point.latency.get("p50")
    if not point.held_back and median and point.late_s and point.late_s.value > LATE_SHARE * median.value:
        yield f"the client sent late, by {point.late_s.value:.3g} s at the 99th percentile."
    if point.prompt_hits:
        yield f"{point.prompt_hits} prompts had been sent before, and their embeddings were reused."
