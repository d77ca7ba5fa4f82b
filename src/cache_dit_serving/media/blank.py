"""Blank outputs: black pictures and frames, silence."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from cache_dit_serving.media.values import ImageOutput, Media, VideoOutput


def blank_of(media: Media) -> Media:
    """Return a blank output of the same kind, shape and type of values."""
    array = np.zeros_like(media.array)
    if isinstance(media, ImageOutput):
        return ImageOutput(array)
    if isinstance(media, VideoOutput):
        audio = media.audio and replace(media.audio, array=np.zeros_like(media.audio.array))
        return replace(media, array=array, audio=audio, finite=True)
    return replace(media, array=array)
