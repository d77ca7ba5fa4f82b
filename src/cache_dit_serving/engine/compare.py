"""`POST /compare`: one seed with the cache and without, and how far apart the two outputs are."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cache_dit_serving.engine.answers import stats_of
from cache_dit_serving.engine.preparation import Prepared
from cache_dit_serving.jobs.generation import Encoded
from cache_dit_serving.media.encode import encode
from cache_dit_serving.media.quality import difference, psnr, snr, ssim
from cache_dit_serving.media.values import Array, Clip, Media, Picture, Sound
from cache_dit_serving.schemas.answers import ComparedImage, CompareResponse, FrameDistance


@dataclass(frozen=True)
class _Frame:
    psnr_db: float
    ssim: float
    max_difference: float
    mean_difference: float


@dataclass(frozen=True)
class _Distance:
    """Difference between two outputs of one kind; None where the kind has no such measure."""

    psnr_db: float | None
    ssim: float | None
    snr_db: float | None
    worst_frame: FrameDistance | None
    max_difference: float
    mean_difference: float
    shown: Media
    """The differences, to be looked at."""


def compared_response(prepared: Prepared, outputs: Sequence[Encoded]) -> CompareResponse:
    """Measure and deliver a generation of two outputs, with the cache and without. Slow: not for the event loop."""
    generation = prepared.generation
    cached, uncached = outputs
    assert cached.media is not None
    assert uncached.media is not None
    distance = _measure(cached.media, uncached.media)
    # A picture of differences is for measuring: no lossy format.
    output = replace(generation.planned.output, image_format="png")
    files = [
        (cached.content, cached.extension),
        (uncached.content, uncached.extension),
        encode(distance.shown, output, {}),
    ]
    cached_file, uncached_file, difference_file = prepared.delivery.deliver(files).texts
    identical = distance.max_difference == 0
    return CompareResponse(
        seed=cached.record.seed,
        cached=_side(cached, cached_file),
        uncached=_side(uncached, uncached_file),
        difference=difference_file,
        identical=identical,
        psnr_db=_rounded(distance.psnr_db, 3),
        ssim=_rounded(distance.ssim, 6),
        snr_db=_rounded(distance.snr_db, 3),
        worst_frame=None if identical else distance.worst_frame,
        max_difference=round(distance.max_difference, 6),
        mean_difference=round(distance.mean_difference, 6),
        speedup=round(uncached.record.seconds / cached.record.seconds, 3),
        request_id=generation.id,
        warnings=generation.warnings,
        stats=stats_of([cached.record]) if prepared.intake.request.include_stats else None,
    )


def _measure(cached: Media, uncached: Media) -> _Distance:
    """Frame by frame; a picture is one frame, and a sound one row of samples."""
    if isinstance(cached, Sound):
        gap = cached.array - uncached.array
        greatest = float(abs(gap).max())
        shown = replace(cached, array=gap / greatest if greatest else gap)
        decibels = snr(cached.array, uncached.array)
        return _Distance(None, None, decibels, None, greatest, float(abs(gap).mean()), shown)
    is_clip = isinstance(cached, Clip)
    ours, reference = (media.array if is_clip else media.array[None] for media in (cached, uncached))
    frames = [_measure_frame(a, b) for a, b in zip(ours, reference, strict=True)]
    worst = min(range(len(frames)), key=lambda index: (frames[index].psnr_db, frames[index].ssim))
    return _Distance(
        psnr_db=statistics.median(frame.psnr_db for frame in frames),
        ssim=statistics.median(frame.ssim for frame in frames),
        snr_db=None,
        worst_frame=_described(worst, frames[worst]) if is_clip else None,
        max_difference=max(frame.max_difference for frame in frames),
        mean_difference=statistics.fmean(frame.mean_difference for frame in frames),
        shown=_silent(replace(cached, array=difference(cached.array, uncached.array))),
    )


def _silent(media: Media) -> Media:
    """A clip without its sound, which is not measured."""
    return replace(media, sound=None) if isinstance(media, Clip) else media


def _rounded(value: float | None, digits: int) -> float | None:
    """Return a rounded value; None in place of infinity, which JSON has not."""
    return None if value is None or math.isinf(value) else round(value, digits)


def _measure_frame(ours: Array, reference: Array) -> _Frame:
    gap = abs(ours - reference)
    return _Frame(psnr(ours, reference), ssim(ours, reference), float(gap.max()), float(gap.mean()))


def _described(index: int, frame: _Frame) -> FrameDistance:
    return FrameDistance(frame=index, psnr_db=round(frame.psnr_db, 3), ssim=round(frame.ssim, 6))


def _side(image: Encoded, file: str) -> ComparedImage:
    return ComparedImage(
        image=file if isinstance(image.media, Picture) else None,
        video=file if isinstance(image.media, Clip) else None,
        audio=file if isinstance(image.media, Sound) else None,
        time_cost=round(image.record.seconds, 4),
        denoise=round(image.record.denoise_s, 4),
        cache=image.record.cache,
    )
