"""`deadline_s`: the least approximation whose learnt rate fits into the time, or a refusal with the best there is."""

from __future__ import annotations

from cache_dit_serving.errors import DeadlineExceeded, InvalidRequest
from cache_dit_serving.jobs import metrics
from cache_dit_serving.jobs.rates import Rates
from cache_dit_serving.media.inputs import NO_INPUTS, Inputs
from cache_dit_serving.planning.call import GenerationCall
from cache_dit_serving.planning.model import PlannedModel
from cache_dit_serving.planning.plan import plan
from cache_dit_serving.schemas.answers import DeadlineReport
from cache_dit_serving.schemas.request import GenerateRequest

# What may come on top of what nine pictures in ten took.
MARGIN = 1.05


def plan_within_deadline(
    request: GenerateRequest, model: PlannedModel, rates: Rates, queue_s: float, inputs: Inputs = NO_INPUTS
) -> tuple[GenerationCall, DeadlineReport | None]:
    """The call for a request, and what was promised where it has a deadline.

    With a deadline and neither `speed` nor `cache`, the speeds are tried from lossless on; a speed whose rate has not
    been learnt yet is taken to reuse nothing. With one of them, that is all that is tried.

    Args:
        queue_s: seconds until a call submitted now begins.
        inputs: the pictures that the request names.

    Raises:
        InvalidRequest: as :func:`planning.plan.plan`; with a choice of speeds, only where none of them can be planned.
        DeadlineExceeded: nothing fits; its details hold the best that can be promised.
    """
    if request.deadline_s is None:
        return plan(request, model, inputs), None
    promises: list[DeadlineReport] = []
    not_run: list[str] = []
    for call in _candidates(request, model, inputs):
        estimate = rates.estimate(call)
        if not estimate.known:
            not_run.append(call.cache.speed)
        if estimate.promise_s is None:
            continue
        promise = DeadlineReport(
            deadline_s=request.deadline_s,
            estimate_s=round((queue_s + estimate.promise_s) * MARGIN, 4),
            queue_s=round(queue_s * MARGIN, 4),
            speed=call.cache.speed,
        )
        if promise.estimate_s <= request.deadline_s:
            return call, promise
        promises.append(promise)
    metrics.DEADLINES.labels("refused").inc()
    raise _unattainable(request.deadline_s, promises, not_run)


def _candidates(request: GenerateRequest, model: PlannedModel, inputs: Inputs) -> list[GenerationCall]:
    """The calls to choose from, least approximation first."""
    if request.speed is not None or request.cache is not None:
        return [plan(request, model, inputs)]
    calls, refusals = [], []
    for speed in model.speeds.allowed:
        try:
            calls.append(plan(request.model_copy(update={"speed": speed}), model, inputs))
        except InvalidRequest as error:  # a speed whose settings do not go with this request's steps or passes
            refusals.append(error)
    if not calls:
        raise refusals[0]
    return calls


def _unattainable(deadline_s: float, promises: list[DeadlineReport], not_run: list[str]) -> DeadlineExceeded:
    message = f"no speed of this server is known to be done within {deadline_s:g} s"
    best = min(promises, key=lambda promise: promise.estimate_s, default=None)
    if best is not None:
        message += f"; the best is {best.speed} in {best.estimate_s:.3g} s, {best.queue_s:.3g} s of them in the queue"
    if not_run:
        message += f"; not run here yet: {', '.join(not_run)}"
    return DeadlineExceeded(
        message,
        param="deadline_s",
        code="deadline_unattainable",
        retry_after_s=(best and best.queue_s) or None,
        details={"deadline": best.model_dump(mode="json") if best else None},
    )
