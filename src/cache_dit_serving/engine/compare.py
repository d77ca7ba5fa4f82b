"""`POST /compare`: one seed with the cache and without, and how far apart the two outputs are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cache_dit_serving.engine.answers import stats_of
from cache_dit_serving.engine.preparation import Prepared
from cache_dit_serving.jobs.generation import OutputFile
from cache_dit_serving.measure.distances.outputs import WorstFrame, distance
from cache_dit_serving.media.encode import encode
from cache_dit_serving.media.kinds import KINDS
from cache_dit_serving.schemas.answers import ComparedImage, CompareResponse, FrameDistance


def compared_response(prepared: Prepared, outputs: Sequence[OutputFile]) -> CompareResponse:
    """Measure and deliver a generation of two outputs, with the cache and without. Slow: not for the event loop."""
    generation = prepared.generation
    cached, uncached = outputs
    assert cached.media is not None
    assert uncached.media is not None
    kind, output = KINDS[cached.media.kind], generation.planned.output
    apart = distance(cached.media, uncached.media)
    output = replace(output, format=kind.difference_format or output.format)
    files = [
        (cached.content, cached.extension),
        (uncached.content, uncached.extension),
        encode(apart.shown, output, {}),
    ]
    cached_file, uncached_file, difference_file = prepared.delivery.deliver(files).texts
    identical, sampler = apart.max_difference == 0, generation.planned.call.sampler
    return CompareResponse(
        seed=cached.record.seed,
        scheduler=sampler.name if sampler else None,
        shift=sampler.shift if sampler else None,
        cached=_side(cached, cached_file),
        uncached=_side(uncached, uncached_file),
        difference=difference_file,
        identical=identical,
        psnr_db=_rounded(apart.psnr_db, 3),
        ssim=_rounded(apart.ssim, 6),
        flip=_rounded(apart.flip, 6),
        flicker=_rounded(apart.flicker, 6),
        snr_db=_rounded(apart.snr_db, 3),
        spectral_db=_rounded(apart.spectral_db, 3),
        worst_frame=None if identical else _described(apart.worst_frame),
        max_difference=round(apart.max_difference, 6),
        mean_difference=round(apart.mean_difference, 6),
        speedup=round(uncached.record.seconds / cached.record.seconds, 3),
        request_id=generation.id,
        warnings=generation.warnings,
        stats=stats_of([cached.record]) if prepared.intake.request.include_stats else None,
    )


def _rounded(value: float | None, digits: int) -> float | None:
    """Return a rounded value; None in place of infinity and NaN, which JSON has not."""
    return None if value is None or not math.isfinite(value) else round(value, digits)


def _described(frame: WorstFrame | None) -> FrameDistance | None:
    if frame is None:
        return None
    return FrameDistance(
        frame=frame.number,
        psnr_db=round(frame.psnr_db, 3),
        ssim=_rounded(frame.ssim, 6),
        flip=round(frame.flip, 6),
    )


def _side(image: OutputFile, file: str) -> ComparedImage:
    assert image.media is not None
    made: dict[str, Any] = {str(image.media.kind): file}
    return ComparedImage(
        **made,
        time_cost=round(image.record.seconds, 4),
        denoise=round(image.record.denoise_s, 4),
        cache=image.record.cache,
    )
