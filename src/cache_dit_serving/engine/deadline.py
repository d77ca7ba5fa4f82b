"""`deadline_s`: the least approximation whose learnt rate fits into the time, or a refusal with the best there is."""

from __future__ import annotations

from collections.abc import Collection

from cache_dit_serving.errors import DeadlineExceeded, InvalidRequest
from cache_dit_serving.jobs import metrics
from cache_dit_serving.jobs.rates import Rates
from cache_dit_serving.media.inputs import NO_INPUTS, Inputs
from cache_dit_serving.planning.plan import plan
from cache_dit_serving.planning.planned import Planned
from cache_dit_serving.planning.resolve import Resolved
from cache_dit_serving.schemas.answers import DeadlineReport

# What may come on top of what nine images in ten took.
MARGIN = 1.05


def plan_within_deadline(
    resolved: Resolved,
    rates: Rates,
    queue_s: float,
    inputs: Inputs = NO_INPUTS,
    *,
    without: Collection[str] = (),
) -> tuple[Planned, DeadlineReport | None]:
    """Plan a request; with a deadline, return what was promised too.

    With a deadline and neither `speed` nor `cache`, the speeds are tried from lossless on; a speed whose rate has not
    been learnt yet is taken to reuse nothing. With one of them, that is all that is tried.

    Args:
        queue_s: seconds until a call submitted now begins.
        inputs: the images that the request names.
        without: speeds that are not tried.

    Raises:
        InvalidRequest: as :func:`planning.plan.plan`; with a choice of speeds, only where none of them can be planned.
        DeadlineExceeded: nothing fits; its details hold the best that can be promised.
    """
    request = resolved.request
    if request.deadline_s is None:
        return plan(resolved, inputs), None
    promises: list[DeadlineReport] = []
    not_run: list[str] = []
    for planned in _candidates(resolved, inputs, without):
        estimate = rates.estimate(planned)
        if not estimate.known:
            not_run.append(planned.cache.speed)
        if estimate.promise_s is None:
            continue
        promise = DeadlineReport(
            deadline_s=request.deadline_s,
            estimate_s=round((queue_s + estimate.promise_s) * MARGIN, 4),
            queue_s=round(queue_s * MARGIN, 4),
            speed=planned.cache.speed,
        )
        if promise.estimate_s <= request.deadline_s:
            return planned, promise
        promises.append(promise)
    metrics.DEADLINES.labels("refused").inc()
    raise _unattainable(request.deadline_s, promises, not_run)


def _candidates(resolved: Resolved, inputs: Inputs, without: Collection[str]) -> list[Planned]:
    """The plans to choose from, least approximation first."""
    request = resolved.request
    if request.speed is not None or request.cache is not None:
        return [plan(resolved, inputs)]
    plans, refusals = [], []
    for speed in resolved.model.speeds.allowed:
        if speed in without:
            continue
        try:
            plans.append(plan(resolved.at_speed(speed), inputs))
        except InvalidRequest as error:  # a speed whose settings do not go with this request's steps or passes
            refusals.append(error)
    if not plans:
        raise refusals[0]
    return plans


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
