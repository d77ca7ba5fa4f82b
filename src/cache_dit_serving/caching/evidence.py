"""Evidence of the cache's effect on a generation, in numbers and in words. Pure functions without torch."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from cache_dit_serving.caching.report import BlockListStats, CacheReport, DiffQuantiles
from cache_dit_serving.caching.settings import CacheSettings, Reason
from cache_dit_serving.caching.speeds import CacheChoice


@dataclass(frozen=True)
class Record:
    """The cache's own record of one call."""

    settings: CacheSettings
    passes: int
    """Forward passes a step."""
    executed: Mapping[str, int]
    """Denoising steps by transformer, as cache-dit counted them."""
    block_lists: list[BlockListStats]

    @property
    def executed_steps(self) -> int:
        return sum(self.executed.values())

    def cached_steps(self) -> set[int]:
        """Return the steps of the generation in which any block list was reused, in either pass; counted from 0.

        Several transformers (Wan 2.2's high and low noise) run one after the other. Each counts its own steps from 0.
        """
        begun, steps = 0, set()
        for transformer, executed in self.executed.items():
            for record in self.block_lists:
                # cache-dit also counts cached steps for a list whose blocks are all computed.
                if record.transformer == transformer and record.reused_blocks:
                    steps |= {begun + step for step in (*record.cached_steps, *record.cfg_cached_steps)}
            begun += executed
        return steps

    def diffs(self) -> list[float]:
        """Return every compared residual difference, NaN included.

        Leaves out cache-dit's codes -1 (always reused) and -2 (shapes differ).
        """
        return [diff for record in self.block_lists for diff in _diffs(record) if not diff < 0.0]


def with_passes_of(record: Record, others: Sequence[Record], *, split: bool) -> Record:
    """Return the record of a call whose forward passes several processes made.

    Args:
        record: that of the first pass of each step.
        others: those of further passes.
        split: a block list that several records have was run over parts of one batch. Otherwise by guidance's second
            pass.
    """
    lists = {(each.transformer, each.block_list): each for each in record.block_lists}
    for each in (each for other in others for each in other.block_lists):
        key = each.transformer, each.block_list
        if key not in lists:
            lists[key] = each
        elif not split:
            lists[key] = _with_second_pass(lists[key], each)
    return replace(record, block_lists=list(lists.values()))


def _with_second_pass(first: BlockListStats, second: BlockListStats) -> BlockListStats:
    return first.model_copy(
        update={
            "cfg_cached_steps": second.cached_steps,
            "cfg_diffs": second.diffs,
            "blocks": first.blocks + second.blocks,
            "reused_blocks": first.reused_blocks + second.reused_blocks,
        }
    )


def report_of(choice: CacheChoice, record: Record | None, steps: int) -> CacheReport:
    """Return the report of one image.

    Args:
        record: the cache's record; None if the image was drawn without a cache.
        steps: denoising steps that ran.
    """
    if record is None:
        return CacheReport(
            enabled=False,
            engaged=False,
            reason=choice.no_cache_reason.sentence,
            reason_code=choice.no_cache_reason.code,
            speed=choice.speed,
            steps=steps,
            cached_steps=0,
            computed_steps=steps,
            executed_steps=steps,
        )
    settings, cached, diffs = record.settings, len(record.cached_steps()), record.diffs()
    said = _reason(record, steps, cached, diffs) or _limit(choice, record, cached)
    return CacheReport(
        enabled=True,
        engaged=cached > 0,
        reason=said.sentence if said else None,
        reason_code=said.code if said else None,
        speed=choice.speed,
        steps=steps,
        cached_steps=cached,
        computed_steps=steps - cached,
        executed_steps=record.executed_steps,
        blocks=sum(part.blocks for part in record.block_lists),
        reused_blocks=sum(part.reused_blocks for part in record.block_lists),
        residual_diff=diff_quantiles(diffs),
        nan_diffs=sum(map(math.isnan, diffs)),
        settings=settings.effective(),
        settings_hash=settings.digest(),
    )


def merge_reports(reports: list[CacheReport]) -> CacheReport:
    """Return the report of a request, merged from those of its images.

    Counts add up. Each quartile is the median of the images' quartiles.
    """
    first = reports[0]
    engaged = any(report.engaged for report in reports)
    telling = [each for each in reports if each.nan_diffs or (each.reason and not engaged)]
    limited = [each for each in reports if each.reason_code == "limited"]
    said = next(iter((*telling, *limited)), None)
    quantiles = [report.residual_diff for report in reports if report.residual_diff is not None]
    summed = (
        "steps",
        "cached_steps",
        "computed_steps",
        "executed_steps",
        "blocks",
        "reused_blocks",
        "nan_diffs",
        "redrawn",
    )
    return first.model_copy(
        update={
            **{name: sum(getattr(report, name) for report in reports) for name in summed},
            "engaged": engaged,
            "reason": said.reason if said else None,
            "reason_code": said.reason_code if said else None,
            "residual_diff": _merged(quantiles),
        }
    )


def diff_quantiles(diffs: list[float]) -> DiffQuantiles | None:
    """Return quantiles of the finite differences, rounded to 6 decimals; None if no difference is finite."""
    numbers = sorted(diff for diff in diffs if math.isfinite(diff))
    if not numbers:
        return None
    quarters = statistics.quantiles(numbers, n=4, method="inclusive") if len(numbers) > 1 else numbers * 3
    p25, median, p75 = (round(value, 6) for value in quarters)
    return DiffQuantiles(min=round(numbers[0], 6), p25=p25, median=median, p75=p75, max=round(numbers[-1], 6))


def _reason(record: Record, steps: int, cached: int, diffs: list[float]) -> Reason | None:
    """Return the reason that nothing was reused, or the defect in what was reused; None if there is neither."""
    if any(math.isnan(diff) for diff in diffs):
        return Reason("not_a_number", "a residual difference is not a number")
    if cached:
        return None
    settings = record.settings
    if (certain := settings.cannot_engage(steps, passes=record.passes)) is not None:
        return certain
    threshold = max(settings.of(*part).residual_diff_threshold for part in settings.parts())
    if diffs and min(diffs) >= threshold:
        return Reason(
            "above_threshold",
            f"every residual difference is above the threshold {threshold:g} (the least is {min(diffs):.3g})",
        )
    return Reason("conditions_not_met", "no step met the cache's conditions")


def _limit(choice: CacheChoice, record: Record, cached: int) -> Reason | None:
    """Return the limit of the configuration that a request with its own `cache` object reached; None if none."""
    settings = record.settings
    in_force = choice.inherited & settings.effective().keys()
    reached = {"max_cached_steps": cached, "max_continuous_cached_steps": _longest_run(record)}
    for name, count in reached.items():
        most = getattr(settings, name)
        if name in in_force and 0 <= most <= count:
            sentence = f"{name} {most} of the server's configuration limits what was reused"
            return Reason("limited", f"{sentence}; send cache.{name} to change it (-1: no limit)")
    return None


def _longest_run(record: Record) -> int:
    """Return the greatest number of consecutive steps in which one block list was reused."""
    longest = 0
    for part in record.block_lists:
        for steps in (part.cached_steps, part.cfg_cached_steps) if part.reused_blocks else ():
            run, before = 0, -1
            for step in sorted(steps):
                run = run + 1 if step == before + 1 else 1
                longest, before = max(longest, run), step
    return longest


def _diffs(record: BlockListStats) -> Iterator[float]:
    for diff in (*record.diffs.values(), *record.cfg_diffs.values()):
        yield from diff if isinstance(diff, list) else (diff,)


def _merged(quantiles: list[DiffQuantiles]) -> DiffQuantiles | None:
    if not quantiles:
        return None
    return DiffQuantiles(
        min=min(q.min for q in quantiles),
        p25=statistics.median(q.p25 for q in quantiles),
        median=statistics.median(q.median for q in quantiles),
        p75=statistics.median(q.p75 for q in quantiles),
        max=max(q.max for q in quantiles),
    )
