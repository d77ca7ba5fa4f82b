"""Spans of a generation, made from its times and records once each stage is over: none costs the pipeline's thread."""

from __future__ import annotations

import itertools
import time

from cache_dit_serving.jobs.generation import Generation
from cache_dit_serving.pipeline.protocol import SampleRecord
from cache_dit_serving.tracing import finished_span


def queue_span(generation: Generation) -> None:
    """Make the span of the wait for the pipeline, and of the wake of a model that was asleep."""
    if generation.trace is None:
        return
    finished_span("queue", generation.trace, generation.submitted, generation.waited_s)
    if generation.wake_s:
        finished_span("wake", generation.trace, generation.submitted + generation.waited_s, generation.wake_s)


def output_spans(generation: Generation, index: int, record: SampleRecord, encode_s: float) -> None:
    """Make the spans of an output: its stages and steps, which of them reused blocks among their attributes.

    Args:
        encode_s: seconds that its file took, which has just been made.
    """
    if generation.trace is None:
        return
    report = record.cache
    output = finished_span(
        "output",
        generation.trace,
        record.began,
        record.seconds,
        attributes={"output": index, "seed": record.seed, "cache.engaged": report.engaged, "cache.speed": report.speed},
    )
    finished_span(
        "encode_prompt", output, record.began, record.encode_prompt_s, attributes={"cached": record.prompt_hits > 0}
    )
    denoising = record.began + record.encode_prompt_s
    steps = {"steps": len(record.step_s), "cached_steps": report.cached_steps}
    denoise = finished_span("denoise", output, denoising, record.denoise_s, attributes=steps)
    begins = itertools.accumulate(record.step_s, initial=denoising)
    cached = {step for stats in record.stats for step in stats.cached_steps}
    for step, (at, seconds) in enumerate(zip(begins, record.step_s, strict=False)):
        finished_span("step", denoise, at, seconds, attributes={"step": step, "cached": step in cached})
    finished_span("decode", output, denoising + record.denoise_s, record.decode_s)
    finished_span("encode_output", generation.trace, time.time() - encode_s, encode_s, attributes={"output": index})


def failed_span(generation: Generation, code: str) -> None:
    """Make the span of a generation that has begun, and ended with an error of this code."""
    if generation.trace is not None and generation.started is not None:
        finished_span("output", generation.trace, generation.started, time.time() - generation.started, error=code)
