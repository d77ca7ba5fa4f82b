"""Outputs of a pipeline as arrays: a picture, a clip or a sound."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar

import numpy as np

Array = np.ndarray[Any, Any]


class MediaKind(StrEnum):
    """Kind of an output. The values are the names used in answers and messages."""

    PICTURE = "image"
    CLIP = "video"
    SOUND = "audio"


@dataclass(frozen=True)
class Picture:
    kind: ClassVar[MediaKind] = MediaKind.PICTURE
    array: Array
    """(height, width, 3) floats in [0, 1]."""


@dataclass(frozen=True)
class Sound:
    kind: ClassVar[MediaKind] = MediaKind.SOUND
    array: Array
    """(channels, samples) floats in [-1, 1]."""
    rate: int
    """Sample rate, samples per second."""


@dataclass(frozen=True)
class Clip:
    kind: ClassVar[MediaKind] = MediaKind.CLIP
    array: Array
    """(frames, height, width, 3) floats in [0, 1]."""
    fps: float
    """Frame rate, frames per second."""
    sound: Sound | None = None
    """Sound of the clip, if the model makes any."""


Media = Picture | Clip | Sound
"""Output of any kind."""
