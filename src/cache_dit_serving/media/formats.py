"""File formats of outputs: names, media types and defaults."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ImageFormat = Literal["png", "jpeg", "webp"]
DEFAULT_FORMAT: ImageFormat = "png"
DEFAULT_QUALITY = 90
"""Default quality of the lossy image formats, 1 to 100."""
VideoFormat = Literal["mp4", "webp", "gif"]
AudioFormat = Literal["wav", "flac"]
MOST_GIF_FPS = 50
"""Maximum frame rate of a GIF. It counts time in 1/100 s, and browsers show each frame for at least two of them."""
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
"""Media type by file extension, which is also the format's name."""


@dataclass(frozen=True)
class OutputSpec:
    """File formats of one call's outputs."""

    image_format: ImageFormat = DEFAULT_FORMAT
    image_quality: int | None = None
    """Quality of the lossy formats, 1 to 100; None: `DEFAULT_QUALITY`."""
    video_format: VideoFormat = DEFAULT_VIDEO_FORMAT
    audio_format: AudioFormat = DEFAULT_AUDIO_FORMAT
    keep_media: bool = False
    """Keep the raw arrays beside the file. Off by default, because floats take many times the file's size."""
