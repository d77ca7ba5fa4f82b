"""Results of a benchmark: the schema of its file, and the figures of a point from its outcomes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from cache_dit_serving.measure.load.arrival import Closed, Load, Open
from cache_dit_serving.measure.load.outcome import Outcome
from cache_dit_serving.measure.statistics import Estimate, mean, quantile

SCHEMA_VERSION = 1
PERCENTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
BEFORE, AFTER = "client_wait", "rest"
"""Parts of a latency that the server does not measure: before the request is sent; and HTTP, network and client."""


class _Kept(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Quantity(_Kept):
    """Value with its 95 % confidence interval."""

    value: float
    low: float
    high: float
    bounded: bool = Field(True, description="False: too few requests; the true value may lie above all that were seen.")


class LoadPoint(_Kept):
    """Load of a point."""

    kind: Literal["closed", "open"]
    value: float = Field(description="Users of a closed loop, or requests per second of an open one.")

    def label(self) -> str:
        """Return the load in words."""
        if self.kind == "open":
            return f"{self.value:g} requests/s"
        return "1 user" if self.value == 1 else f"{self.value:g} users"


class ErrorCount(_Kept):
    """Requests that failed alike."""

    kind: str = Field(description="Status and code, such as `429 queue_full`, or `timeout`, `no connection` ...")
    count: int
    message: str | None = Field(description="The server's text of the first.")


class RetryAfter(_Kept):
    """`Retry-After` of the answers that had one."""

    count: int
    least_s: float
    most_s: float


class PointResult(_Kept):
    """Figures of one point, and the requests that they come from."""

    load: LoadPoint
    requests: int = Field(description="Requests that ended.")
    succeeded: int
    outputs: int
    duration_s: float = Field(description="Start of the point to its last answer.")
    offered_rate: float | None = Field(None, description="Requests per second that arrived; null in a closed loop.")
    achieved_rate: float | None = Field(None, description="Requests per second that succeeded, under full load.")
    throughput: Quantity | None = Field(None, description="Outputs per second, under full load.")
    latency: dict[str, Quantity] = Field({}, description="Seconds of requests that succeeded, from the intended start.")
    stages: dict[str, Quantity] = Field({}, description="Mean seconds by stage; they add up to the mean latency.")
    errors: list[ErrorCount] = []
    retry_after: RetryAfter | None = None
    steps: int | None = Field(None, description="Denoising steps; null: the server does not say.")
    cached_steps: int | None = Field(None, description="Steps that reused blocks.")
    prompt_hits: int | None = Field(None, description="Prompts whose embeddings the server still had.")
    late_s: Quantity | None = Field(None, description="99th percentile of the client's own delay before it sent.")
    client_cpu: float = Field(0.0, description="CPU of the client, as a share of one core.")
    held_back: bool = Field(False, description="True if arrivals waited for the bound of requests in flight.")
    samples: list[Outcome] = Field(description="Each request, in the order of the intended starts.")


class BenchResult(_Kept):
    """File of a benchmark. `schema_version` changes when a field changes its meaning or goes."""

    schema_version: Literal[1] = 1
    tool_version: str
    begun_at: str = Field(description="ISO 8601, UTC.")
    url: str
    settings: dict[str, Any] = Field(description="Flags in force, without the API key.")
    server: dict[str, Any] = Field(description="Answer of GET /get_model_info before the load; empty: it has none.")
    machine: dict[str, Any] = Field(description="The client's machine.")
    warm_up: int = Field(description="Requests before the first point, which count nowhere.")
    interrupted: bool = False
    points: list[PointResult]


def load_point(load: Load) -> LoadPoint:
    """Return a load as the file has it."""
    if isinstance(load, Open):
        return LoadPoint(kind="open", value=load.rate)
    return LoadPoint(kind="closed", value=load.users)


def point_result(load: Load, outcomes: Sequence[Outcome], *, client_cpu: float, held_back: bool) -> PointResult:
    """Return the figures of a point."""
    samples = sorted(outcomes, key=lambda outcome: outcome.intended)
    good = [outcome for outcome in samples if outcome.error is None]
    gaps = completion_gaps(samples)
    rate = len(gaps) / sum(gaps) if sum(gaps) > 0 else None
    latencies = [outcome.latency for outcome in good]
    outputs = sum(outcome.outputs for outcome in good)
    offered = None
    if not isinstance(load, Closed) and len(samples) > 1:
        offered = len(samples) / samples[-1].intended
    return PointResult(
        load=load_point(load),
        requests=len(samples),
        succeeded=len(good),
        outputs=outputs,
        duration_s=max((outcome.ended for outcome in samples), default=0.0),
        offered_rate=offered,
        achieved_rate=rate,
        throughput=_throughput(gaps, outputs / len(good)) if gaps and rate else None,
        latency=_latency(latencies) if latencies else {},
        stages=_stages(good),
        errors=_errors(samples),
        retry_after=_retry_after(samples),
        steps=_sum(outcome.steps for outcome in good),
        cached_steps=_sum(outcome.cached_steps for outcome in good),
        prompt_hits=_sum(outcome.prompt_hits for outcome in good),
        late_s=_quantity(quantile([each.sent - each.intended for each in samples], 0.99)) if samples else None,
        client_cpu=client_cpu,
        held_back=held_back,
        samples=samples,
    )


def completion_gaps(samples: Sequence[Outcome]) -> list[float]:
    """Return the seconds between successes while the load was full: up to the last intended start.

    After that, answers come from fewer and fewer requests in flight, and a rate would be too low. Where the load was
    never full for two successes, all of them count.
    """
    ends = sorted(outcome.ended for outcome in samples if outcome.error is None)
    last_start = max((outcome.intended for outcome in samples), default=0.0)
    full = [end for end in ends if end <= last_start]
    counted = full if len(full) > 1 else ends
    return [end - before for before, end in zip([0.0, *counted], counted, strict=False)]


def stage_times(outcome: Outcome) -> dict[str, float]:
    """Return a success's seconds by stage, with the parts that the server does not measure.

    They add up to its latency.
    """
    known = outcome.sent - outcome.intended + sum(outcome.stages.values())
    rest = max(0.0, outcome.latency - known)
    return {BEFORE: outcome.sent - outcome.intended, **outcome.stages, AFTER: rest}


def _quantity(estimate: Estimate) -> Quantity:
    return Quantity(value=estimate.value, low=estimate.low, high=estimate.high, bounded=estimate.bounded)


def _throughput(gaps: Sequence[float], outputs_per_request: float) -> Quantity:
    gap = mean(gaps, in_order=True)
    value, low, high = (outputs_per_request / max(each, 1e-9) for each in (gap.value, gap.high, gap.low))
    return Quantity(value=value, low=low, high=high)


def _latency(latencies: Sequence[float]) -> dict[str, Quantity]:
    found = {name: _quantity(quantile(latencies, q, in_order=True)) for name, q in PERCENTILES.items()}
    return {**found, "mean": _quantity(mean(latencies, in_order=True))}


def _stages(good: Sequence[Outcome]) -> dict[str, Quantity]:
    times = [stage_times(outcome) for outcome in good]
    names = dict.fromkeys([BEFORE, *(name for each in times for name in each if name != AFTER), AFTER])
    return {name: _quantity(mean([each.get(name, 0.0) for each in times], in_order=True)) for name in names if times}


def _errors(samples: Sequence[Outcome]) -> list[ErrorCount]:
    failed = [outcome for outcome in samples if outcome.error is not None]
    first = {outcome.error: outcome.message for outcome in reversed(failed)}
    counts = Counter(outcome.error or "" for outcome in failed)
    return [ErrorCount(kind=kind, count=count, message=first[kind] or None) for kind, count in counts.most_common()]


def _retry_after(samples: Sequence[Outcome]) -> RetryAfter | None:
    told = [outcome.retry_after_s for outcome in samples if outcome.retry_after_s is not None]
    return RetryAfter(count=len(told), least_s=min(told), most_s=max(told)) if told else None


def _sum(values: Any) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None
