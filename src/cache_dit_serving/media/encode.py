"""Encoding of a picture, a clip or a sound into a file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cache_dit_serving.media.formats import OutputSpec
from cache_dit_serving.media.images import encode_image
from cache_dit_serving.media.outputs import File
from cache_dit_serving.media.sound import encode_sound
from cache_dit_serving.media.values import Clip, Media, Picture, Sound
from cache_dit_serving.media.video import encode_clip


def encode(
    media: Media, output: OutputSpec, parameters: dict[str, Any], warnings: Sequence[dict[str, Any]] = ()
) -> File:
    """Encode an output in the format that the request chose.

    Args:
        parameters: the request that made the output; written into formats that hold text.
        warnings: the request's warnings; written into a PNG only.
    """
    match media:
        case Picture():
            content = encode_image(media, output.image_format, output.image_quality, parameters, warnings)
            return content, output.image_format
        case Clip():
            return encode_clip(media, output.video_format, parameters), output.video_format
        case Sound():
            return encode_sound(media, output.audio_format, parameters), output.audio_format
