"""What the cache did, in numbers: reports and quantiles. Pure, and without torch."""

from __future__ import annotations

import math
import statistics

from cache_dit_serving.schemas import CacheReport, DiffQuantiles


def off_report(num_inference_steps: int) -> CacheReport:
    """The report of a call without a cache."""
    return CacheReport(
        enabled=False,
        engaged=False,
        reason="off",
        steps=num_inference_steps,
        cached_steps=0,
        computed_steps=num_inference_steps,
        executed_steps=num_inference_steps,
    )


def merge_reports(reports: list[CacheReport]) -> CacheReport:
    """The report of a request, from those of its images: steps add up, quantiles span them all."""
    first = reports[0]
    quantiles = [report.residual_diff for report in reports if report.residual_diff is not None]
    return CacheReport(
        enabled=first.enabled,
        engaged=any(report.engaged for report in reports),
        reason=next((report.reason for report in reports if report.reason), None),
        steps=sum(report.steps for report in reports),
        cached_steps=sum(report.cached_steps for report in reports),
        computed_steps=sum(report.computed_steps for report in reports),
        executed_steps=sum(report.executed_steps for report in reports),
        residual_diff=DiffQuantiles(
            min=min(q.min for q in quantiles),
            p25=statistics.median(q.p25 for q in quantiles),
            median=statistics.median(q.median for q in quantiles),
            p75=statistics.median(q.p75 for q in quantiles),
            max=max(q.max for q in quantiles),
        )
        if quantiles
        else None,
        settings=first.settings,
    )


def diff_quantiles(diffs: list[float]) -> DiffQuantiles | None:
    """Quantiles of the differences that are numbers; None where there are none."""
    numbers = sorted(diff for diff in diffs if math.isfinite(diff))
    if not numbers:
        return None
    quarters = statistics.quantiles(numbers, n=4, method="inclusive") if len(numbers) > 1 else numbers * 3
    p25, median, p75 = (round(value, 6) for value in quarters)
    return DiffQuantiles(min=round(numbers[0], 6), p25=p25, median=median, p75=p75, max=round(numbers[-1], 6))
