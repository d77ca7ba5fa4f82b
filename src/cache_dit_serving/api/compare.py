"""`POST /compare`: one seed with the cache and without, and how far apart the two pictures are."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cache_dit_serving.api.stats import stats_of
from cache_dit_serving.jobs.generation import Encoded, Generation
from cache_dit_serving.media.delivery import Delivery
from cache_dit_serving.media.images import encode_image
from cache_dit_serving.media.quality import difference, psnr, ssim
from cache_dit_serving.media.values import Picture
from cache_dit_serving.schemas.answers import ComparedImage, CompareResponse
from cache_dit_serving.schemas.request import GenerateRequest


@dataclass(frozen=True)
class _Distance:
    psnr_db: float
    ssim: float
    max_difference: float
    mean_difference: float
    picture: bytes


def compared_response(
    generation: Generation, images: list[Encoded], request: GenerateRequest, delivery: Delivery
) -> CompareResponse:
    """The answer for a generation of two images: with the cache, then without. Takes time: not for the event loop."""
    cached, uncached = images
    assert isinstance(cached.media, Picture)
    assert isinstance(uncached.media, Picture)
    distance = _measure(cached.media, uncached.media)
    files = [
        (cached.content, cached.extension),
        (uncached.content, uncached.extension),
        (distance.picture, "png"),
    ]
    cached_file, uncached_file, difference_file = delivery.deliver(files)
    return CompareResponse(
        seed=cached.record.seed,
        cached=_side(cached, cached_file),
        uncached=_side(uncached, uncached_file),
        difference=difference_file,
        identical=math.isinf(distance.psnr_db),
        psnr_db=None if math.isinf(distance.psnr_db) else round(distance.psnr_db, 3),
        ssim=round(distance.ssim, 6),
        max_difference=round(distance.max_difference, 6),
        mean_difference=round(distance.mean_difference, 6),
        speedup=round(uncached.record.seconds / cached.record.seconds, 3),
        request_id=generation.id,
        warnings=list(generation.call.warnings),
        stats=stats_of([cached.record]) if request.include_stats else None,
    )


def _measure(cached: Picture, uncached: Picture) -> _Distance:
    ours, reference = cached.array, uncached.array
    gap = abs(ours - reference)
    return _Distance(
        psnr(ours, reference),
        ssim(ours, reference),
        float(gap.max()),
        float(gap.mean()),
        encode_image(Picture(difference(ours, reference)), "png", None, {}),
    )


def _side(image: Encoded, file: str) -> ComparedImage:
    return ComparedImage(
        image=file,
        time_cost=round(image.record.seconds, 4),
        denoise=round(image.record.denoise_s, 4),
        cache=image.record.cache,
    )
