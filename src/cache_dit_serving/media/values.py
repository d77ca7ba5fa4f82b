"""Outputs of a pipeline as arrays: an image, a video or a sound."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar

import numpy as np

Array = np.ndarray[Any, Any]


class MediaKind(StrEnum):
    """Kind of an output. The values are the names used in answers and messages."""

    IMAGE = "image"
    VIDEO = "video"
    AUDIO = "audio"


@dataclass(frozen=True)
class ImageOutput:
    kind: ClassVar[MediaKind] = MediaKind.IMAGE
    array: Array
    """(height, width, 3) bytes, or floats in [0, 1]."""
    finite: bool = True
    """False if bytes were made of values that are NaN or infinite."""


@dataclass(frozen=True)
class AudioOutput:
    kind: ClassVar[MediaKind] = MediaKind.AUDIO
    array: Array
    """(channels, samples) floats in [-1, 1]."""
    rate: int
    """Sample rate, samples per second."""


@dataclass(frozen=True)
class VideoOutput:
    kind: ClassVar[MediaKind] = MediaKind.VIDEO
    array: Array
    """(frames, height, width, 3) bytes, or floats in [0, 1]."""
    fps: float
    """Frame rate, frames per second."""
    audio: AudioOutput | None = None
    """Sound of the video, if the model makes any."""
    finite: bool = True
    """False if bytes were made of frames with values that are NaN or infinite."""


Media = ImageOutput | VideoOutput | AudioOutput
"""Output of any kind."""
