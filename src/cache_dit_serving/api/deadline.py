"""`deadline_s`: the least approximation whose learnt rate fits into the time, or a refusal with the best there is."""

from __future__ import annotations

from dataclasses import dataclass

from cache_dit_serving.config import Settings
from cache_dit_serving.errors import DeadlineExceeded
from cache_dit_serving.jobs import metrics
from cache_dit_serving.jobs.worker import PipelineWorker
from cache_dit_serving.pipeline.arguments import GenerationCall, plan
from cache_dit_serving.schemas import DeadlineReport, GenerateRequest

# What a machine's noise may add to a median.
MARGIN = 1.1


@dataclass(frozen=True)
class _Candidate:
    call: GenerationCall
    report: DeadlineReport
    known: bool


def plan_within_deadline(
    request: GenerateRequest, worker: PipelineWorker, settings: Settings
) -> tuple[GenerationCall, DeadlineReport | None]:
    """The call for a request, and what was promised where it has a deadline.

    With a deadline and neither `speed` nor `cache`, the speeds are tried from lossless on; a speed whose rate has not
    been learnt yet is taken to reuse nothing. With one of them, that is all that is tried.

    Raises:
        InvalidRequest: as `plan`.
        DeadlineExceeded: nothing fits; its details hold the best that can be promised.
    """
    runner = worker.runner()
    if request.deadline_s is None:
        return plan(request, runner.traits, settings, runner.speeds), None
    own = request.speed is not None or request.cache is not None
    tries = [request] if own else [request.model_copy(update={"speed": speed}) for speed in runner.speeds.allowed]
    queue_s = worker.wait_s()
    candidates = []
    for each in tries:
        call = plan(each, runner.traits, settings, runner.speeds)
        estimate = worker.rates.estimate(call)
        report = DeadlineReport(
            deadline_s=request.deadline_s,
            estimate_s=round((queue_s + estimate.seconds) * MARGIN, 4),
            queue_s=round(queue_s * MARGIN, 4),
            speed=call.cache.speed,
        )
        if report.estimate_s <= request.deadline_s:
            return call, report
        candidates.append(_Candidate(call, report, estimate.known))
    metrics.DEADLINES.labels("refused").inc()
    best = min(candidates, key=lambda candidate: candidate.report.estimate_s)
    unknown = [candidate.report.speed for candidate in candidates if not candidate.known]
    raise DeadlineExceeded(
        f"no speed of this server is known to be done within {request.deadline_s:g} s; the best is "
        f"{best.report.speed} in {best.report.estimate_s:.3g} s, {best.report.queue_s:.3g} s of them in the queue"
        + (f" (not measured here yet: {', '.join(unknown)})" if unknown else ""),
        param="deadline_s",
        code="deadline_unattainable",
        retry_after_s=best.report.queue_s or None,
        details={"deadline": best.report.model_dump(mode="json")},
    )
