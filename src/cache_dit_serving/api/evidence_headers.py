"""Evidence of a generation in an answer's headers, for clients that take its file or read no JSON."""

from __future__ import annotations

import json

from cache_dit_serving.caching.report import CacheReport
from cache_dit_serving.schemas.answers import GenerateResponse


def cache_headers(cache: CacheReport) -> dict[str, str]:
    """Return a summary of the cache's report."""
    return {
        "X-Cache-Engaged": str(cache.engaged).lower(),
        "X-Cache-Speed": cache.speed,
        "X-Cache-Cached-Steps": str(cache.cached_steps),
        "X-Cache-Steps": str(cache.cached_steps + cache.computed_steps),
    }


def evidence_headers(answer: GenerateResponse) -> dict[str, str]:
    """Return seeds, times (`Server-Timing`, milliseconds), cache, model, scheduler and warnings of an answer."""
    times = answer.timings.model_dump(exclude={"prompt_hits"}, exclude_none=True)
    headers = {
        "X-Seed": ",".join(map(str, answer.seeds)),
        "Server-Timing": ", ".join(f"{stage};dur={seconds * 1000:.1f}" for stage, seconds in times.items()),
        **cache_headers(answer.cache),
    }
    if answer.model is not None:
        headers["X-Model"] = answer.model
    if answer.scheduler is not None:
        headers["X-Scheduler"] = answer.scheduler
    if answer.weights_version is not None:
        headers["X-Weights-Version"] = answer.weights_version
    if answer.warnings:
        # Without their texts, which may be longer than proxies let a header be.
        headers["X-Warnings"] = json.dumps([{"param": each.param, "code": each.code} for each in answer.warnings])
    return headers
