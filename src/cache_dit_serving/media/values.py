"""What a pipeline makes, as arrays: a picture, a clip or a sound."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


class MediaKind(StrEnum):
    """A kind of output, by the name that answers and messages give it."""

    PICTURE = "image"
    CLIP = "video"
    SOUND = "audio"

    @property
    def plural(self) -> str:
        return "images" if self is MediaKind.PICTURE else self.value


@dataclass(frozen=True)
class Picture:
    array: Array
    """(height, width, 3) floats in [0, 1]."""


@dataclass(frozen=True)
class Sound:
    array: Array
    """(channels, samples) floats in [-1, 1]."""
    rate: int
    """Samples a second."""


@dataclass(frozen=True)
class Clip:
    array: Array
    """(frames, height, width, 3) floats in [0, 1]."""
    fps: float
    """Frames a second."""
    sound: Sound | None = None
    """What is heard with it, where the model makes that too."""


Media = Picture | Clip | Sound
"""Of any kind."""
