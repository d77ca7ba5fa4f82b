"""`POST /compare`: one seed with the cache and without, and how far apart the two pictures are."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from cache_dit_serving.jobs.generation import EncodedImage, Generation
from cache_dit_serving.media.images import encode_image
from cache_dit_serving.media.quality import Pixels, difference, psnr, ssim
from cache_dit_serving.schemas.answers import ComparedImage, CompareResponse
from cache_dit_serving.schemas.request import GenerateRequest

Deliver = Callable[[list[tuple[bytes, str]]], Awaitable[list[str]]]
"""Pictures with their file extensions, to base64 text, paths or URLs."""


@dataclass(frozen=True)
class _Distance:
    psnr_db: float
    ssim: float
    max_difference: float
    mean_difference: float
    picture: bytes


async def compared_response(
    generation: Generation, images: list[EncodedImage], request: GenerateRequest, deliver: Deliver
) -> CompareResponse:
    """The answer for a generation of two images: with the cache, then without."""
    cached, uncached = images
    distance = await asyncio.to_thread(_measure, cached.drawn.pixels, uncached.drawn.pixels)
    files: list[tuple[bytes, str]] = [
        (cached.content, request.encoding),
        (uncached.content, request.encoding),
        (distance.picture, "png"),
    ]
    cached_file, uncached_file, difference_file = await deliver(files)
    return CompareResponse(
        seed=cached.drawn.seed,
        cached=_side(cached, cached_file),
        uncached=_side(uncached, uncached_file),
        difference=difference_file,
        identical=math.isinf(distance.psnr_db),
        psnr_db=None if math.isinf(distance.psnr_db) else round(distance.psnr_db, 3),
        ssim=round(distance.ssim, 6),
        max_difference=round(distance.max_difference, 6),
        mean_difference=round(distance.mean_difference, 6),
        speedup=round(uncached.drawn.seconds / cached.drawn.seconds, 3),
        request_id=generation.id,
        stats=cached.drawn.stats if request.include_stats else [],
    )


def _measure(cached: Pixels, uncached: Pixels) -> _Distance:
    gap = abs(cached - uncached)
    return _Distance(
        psnr(cached, uncached),
        ssim(cached, uncached),
        float(gap.max()),
        float(gap.mean()),
        encode_image(difference(cached, uncached), "png", None, {}),
    )


def _side(image: EncodedImage, file: str) -> ComparedImage:
    return ComparedImage(
        image=file,
        time_cost=round(image.drawn.seconds, 4),
        denoise=round(image.drawn.denoise_s, 4),
        cache=image.drawn.cache,
    )
