"""Measures of an output against its uncached reference, each with its direction."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from typing import NamedTuple

from cache_dit_serving.measure.distances.flip import flip
from cache_dit_serving.measure.distances.outputs import spread
from cache_dit_serving.measure.distances.pictures import psnr, ssim
from cache_dit_serving.measure.distances.pixels import floats
from cache_dit_serving.measure.distances.sounds import snr
from cache_dit_serving.media.values import Array, AudioOutput, ImageOutput, Media, MediaKind

GREATEST_DB = 100.0
"""Decibels that stand for equal outputs, whose ratio is infinite."""
FRAMES = 8
"""Frames of a video that are measured, evenly spread."""


class Measure(NamedTuple):
    """Number that says how like an output is to its reference."""

    name: str
    title: str
    lower_is_closer: bool
    equal: float
    """Value for equal outputs."""
    in_decibels: bool = False

    def loss(self, value: float) -> float:
        """Return the value as a loss, which is lower for a closer output."""
        return value if self.lower_is_closer else -value

    def value(self, loss: float) -> float:
        """Return the value of a loss."""
        return loss if self.lower_is_closer else -loss


FLIP = Measure("flip", "FLIP", True, 0.0)
SSIM = Measure("ssim", "SSIM", False, 1.0)
PSNR = Measure("psnr_db", "PSNR, dB", False, GREATEST_DB, True)
SNR = Measure("snr_db", "SNR, dB", False, GREATEST_DB, True)
MEASURES = {measure.name: measure for measure in (FLIP, SSIM, PSNR, SNR)}
OF_KIND: Mapping[MediaKind, tuple[Measure, ...]] = {
    MediaKind.IMAGE: (FLIP, SSIM, PSNR),
    MediaKind.VIDEO: (FLIP, SSIM, PSNR),
    MediaKind.AUDIO: (SNR,),
}
"""Measures of each kind of output; the first one is searched by default."""


def measured(output: Media, reference: Media) -> dict[str, float]:
    """Return each measure's value, by name. A video has the mean over its measured frames.

    Raises:
        ValueError: the outputs differ in kind or shape.
    """
    if type(output) is not type(reference) or output.array.shape != reference.array.shape:
        raise ValueError("an output differs from its reference in kind or shape")
    if isinstance(output, AudioOutput):
        return {SNR.name: _bounded(snr(output.array, reference.array))}
    ours, theirs = _frames(output), _frames(reference)
    return {
        name: statistics.fmean(function(a, b) for a, b in zip(ours, theirs, strict=True))
        for name, function in _OF_FRAMES.items()
    }


def _frames(media: Media) -> list[Array]:
    """Return a picture, or the measured frames of a video, as floats in [0, 1]."""
    array = media.array[None] if isinstance(media, ImageOutput) else media.array
    return list(floats(array[spread(len(array), FRAMES)]))


def _bounded(decibels: float) -> float:
    return max(-GREATEST_DB, min(GREATEST_DB, decibels))


def _psnr(image: Array, reference: Array) -> float:
    return _bounded(psnr(image, reference))


_OF_FRAMES: dict[str, Callable[[Array, Array], float]] = {FLIP.name: flip, SSIM.name: ssim, PSNR.name: _psnr}
