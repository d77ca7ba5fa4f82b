"""The files that outputs become, said once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ImageFormat = Literal["png", "jpeg", "webp"]
DEFAULT_FORMAT: ImageFormat = "png"
DEFAULT_QUALITY = 90
"""Of the lossy formats, 1 to 100."""
VideoFormat = Literal["mp4", "webp", "gif"]
AudioFormat = Literal["wav", "flac"]
MOST_GIF_FPS = 50
"""A GIF counts time in hundredths of a second, and browsers show no frame for less than two."""
DEFAULT_VIDEO_FORMAT: VideoFormat = "mp4"
DEFAULT_AUDIO_FORMAT: AudioFormat = "wav"
IMAGE_MEDIA_TYPES: dict[str, str] = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
MEDIA_TYPES: dict[str, str] = {
    **IMAGE_MEDIA_TYPES,
    "mp4": "video/mp4",
    "gif": "image/gif",
    "wav": "audio/wav",
    "flac": "audio/flac",
}
"""By file extension, which is the format's name."""


@dataclass(frozen=True)
class OutputSpec:
    """The files that a call's outputs become."""

    image_format: ImageFormat = DEFAULT_FORMAT
    image_quality: int | None = None
    """Of the lossy formats; None: the default."""
    video_format: VideoFormat = DEFAULT_VIDEO_FORMAT
    audio_format: AudioFormat = DEFAULT_AUDIO_FORMAT
    keep_media: bool = False
    """Whether the raw output is needed beside its file. It is dropped otherwise: floats are many times its size."""
