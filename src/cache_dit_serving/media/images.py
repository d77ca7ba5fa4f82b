"""Encoding of images: PNG with the request in its text chunk, JPEG, WebP."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from PIL import Image

from cache_dit_serving.errors import InternalError
from cache_dit_serving.media.png import encode_png
from cache_dit_serving.media.provenance import PNG_KEYWORD, DigitalSource, pillow_options, xmp_of
from cache_dit_serving.media.values import Array, AudioOutput, ImageOutput, Media, VideoOutput

ImageFormat = Literal["png", "jpeg", "webp"]
DEFAULT_QUALITY = 90
"""Default quality of the lossy formats, 1 to 100."""
PREVIEW_QUALITY = 70
ROWS_AT_ONCE = 128
"""Rows that are converted at once, few enough for their floats to stay in the processor's cache."""
WEBP_METHOD = 0
"""Effort of WebP, 0 to 6. 0 takes a third of the time of Pillow's 4, and a few per cent more bytes."""
TEXT_KEY = "parameters"
"""Name of the PNG text chunk that holds the request as JSON. Sent again, the request redraws the image."""
WARNINGS_KEY = "warnings"
"""Name of the PNG text chunk that holds the request's warnings as JSON. Absent without warnings."""


def encode_image(
    image: ImageOutput,
    image_format: ImageFormat,
    quality: int | None,
    parameters: dict[str, Any],
    warnings: Sequence[dict[str, Any]] = (),
    *,
    source: DigitalSource | None = None,
) -> bytes:
    """Encode an image.

    Args:
        image_format: PNG is lossless; the others take `quality` (1 to 100).
        parameters: the request; written into a PNG with sorted keys, so that equal requests give equal files.
        warnings: the request's warnings; written into a PNG.
        source: origin that the file states; None: it states none.
    """
    pixels = pixels_of(image.array)
    if image_format == "png":
        texts = {TEXT_KEY: json.dumps(parameters, ensure_ascii=False, sort_keys=True)}
        if warnings:
            texts[WARNINGS_KEY] = json.dumps(list(warnings), ensure_ascii=False)
        if source is not None:
            texts[PNG_KEYWORD] = xmp_of(source)
        return encode_png(pixels, texts)
    options: dict[str, Any] = {"method": WEBP_METHOD} if image_format == "webp" else {}
    options |= pillow_options(source)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, image_format.upper(), quality=quality or DEFAULT_QUALITY, **options)
    return buffer.getvalue()


def webp_of(image: Image.Image, source: DigitalSource | None = None) -> bytes:
    """Encode a preview as WebP at `PREVIEW_QUALITY` with the fastest method."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=PREVIEW_QUALITY, method=0, **pillow_options(source))
    return buffer.getvalue()


def pixels_of(array: Array) -> Array:
    """Convert floats in [0, 1] to bytes, rounded as in diffusers' VaeImageProcessor.numpy_to_pil. Bytes stay.

    Args:
        array: (height, width, channels). diffusers' arrays are views of planes, one for each channel.

    Returns:
        Bytes in C order, as the encoders take them.
    """
    if array.dtype == np.uint8:
        return array
    height, width, channels = array.shape
    pixels = np.empty(array.shape, np.uint8)
    values = np.empty((ROWS_AT_ONCE, width), array.dtype)
    for top in range(0, height, ROWS_AT_ONCE):
        rows = values[: height - top]
        for channel in range(channels):
            plane = array[top : top + ROWS_AT_ONCE, :, channel]
            pixels[top : top + ROWS_AT_ONCE, :, channel] = np.rint(np.multiply(plane, 255, out=rows), out=rows)
    return pixels


def check_finite(media: Media) -> None:
    """Refuse an output with NaN or infinite values, which would be encoded as black.

    Raises:
        InternalError: the image, video or sound has such a value.
    """
    audio = media.audio if isinstance(media, VideoOutput) else None
    arrays = [media.array, *([audio.array] if audio is not None else [])]
    told = isinstance(media, AudioOutput) or media.finite
    if not told or not all(np.isfinite(array).all() for array in arrays if array.dtype != np.uint8):
        raise InternalError("The model produced values that are not numbers; try another dtype or turn the cache off.")
