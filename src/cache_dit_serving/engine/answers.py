"""Answers of generations: outputs as delivered, and how they came about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cache_dit_serving.caching.evidence import merge_reports
from cache_dit_serving.engine.preparation import Prepared
from cache_dit_serving.jobs.generation import OutputFile
from cache_dit_serving.media.kinds import KINDS
from cache_dit_serving.pipeline.protocol import SampleRecord
from cache_dit_serving.schemas.answers import GenerateResponse, ImageStats, Stats, Timings, timestamp


def answer_of(prepared: Prepared, outputs: Sequence[OutputFile], delivered: list[str]) -> GenerateResponse:
    """Return the answer of a generation that has ended.

    Args:
        delivered: each output as base64, path or URL.
    """
    generation = prepared.generation
    started, finished = generation.started, generation.finished
    assert started is not None
    assert finished is not None
    records = [output.record for output in outputs]
    kind, sampler = KINDS[generation.planned.call.makes], generation.planned.call.sampler
    made: dict[str, Any] = {kind.answer_key: delivered if kind.several else delivered[0]}
    return GenerateResponse(
        **made,
        seeds=[record.seed for record in records],
        time_cost=round(finished - started, 4),
        inference_start_time=timestamp(started),
        inference_end_time=timestamp(finished),
        timings=Timings(
            queue=round(started - generation.submitted - generation.wake_s, 4),
            wake=round(generation.wake_s, 4) or None,
            encode_prompt=round(sum(record.encode_prompt_s for record in records), 4),
            denoise=round(sum(record.denoise_s for record in records), 4),
            decode=round(sum(record.decode_s for record in records), 4),
            encode_output=round(sum(output.encode_s for output in outputs), 4),
            prompt_hits=sum(record.prompt_hits for record in records),
        ),
        request_id=generation.id,
        model=generation.model.name or None,
        cache=merge_reports([record.cache for record in records]),
        scheduler=sampler.name if sampler else None,
        shift=sampler.shift if sampler else None,
        deadline=prepared.deadline,
        warnings=generation.warnings,
        stats=stats_of(records) if prepared.intake.request.include_stats else None,
        peak_memory_bytes=max((record.peak_memory_bytes or 0 for record in records), default=0) or None,
        weights_version=records[0].weights_version,
        profiles=[record.profile for record in records if record.profile] or None,
    )


def stats_of(records: Sequence[SampleRecord]) -> Stats:
    """`stats` of an answer: the cache's counts by output and block list."""
    return Stats(cache_stats=[ImageStats(seed=record.seed, block_lists=record.stats) for record in records])
