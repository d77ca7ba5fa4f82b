"""Measures of the search: rows of the table of measures, by an output's kind, and their values."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping

from cache_dit_serving.errors import ServingError
from cache_dit_serving.measure.distances.flip import flip
from cache_dit_serving.measure.distances.outputs import spread
from cache_dit_serving.measure.distances.pictures import has_ssim, psnr, ssim
from cache_dit_serving.measure.distances.pixels import floats
from cache_dit_serving.measure.distances.sounds import snr, spectral
from cache_dit_serving.measure.distances.table import MEASURES, Measure
from cache_dit_serving.measure.distances.videos import flicker
from cache_dit_serving.media.kinds import KINDS
from cache_dit_serving.media.values import Array, AudioOutput, Media, MediaKind, VideoOutput

FRAMES = 8
"""Frames of a video whose pictures are measured, evenly spread. Flicker takes all of them."""
FLIP, SSIM, PSNR, FLICKER, SNR, SPECTRAL = (
    MEASURES[name] for name in ("flip", "ssim", "psnr_db", "flicker", "snr_db", "spectral_db")
)
OF_KIND: Mapping[MediaKind, tuple[Measure, ...]] = {
    kind: tuple(MEASURES[name] for name in row.measures) for kind, row in KINDS.items()
}
"""Measures of each kind of output; the first one is searched by default."""


def measured(output: Media, reference: Media) -> dict[str, float]:
    """Return each measure's value, by name, finite. A video has the mean over its measured frames.

    Raises:
        ServingError: the outputs differ in kind or shape, or are smaller than SSIM's window.
    """
    if output.kind is not reference.kind or output.array.shape != reference.array.shape:
        raise ServingError("an output differs from its reference in kind or shape")
    found = _of_sounds(output, reference) if isinstance(output, AudioOutput) else _of_frames(output, reference)
    return {measure.name: measure.finite(value) for measure, value in found.items()}


def _of_sounds(output: Media, reference: Media) -> dict[Measure, float]:
    return {SPECTRAL: spectral(output.array, reference.array), SNR: snr(output.array, reference.array)}


def _of_frames(output: Media, reference: Media) -> dict[Measure, float]:
    pairs = list(zip(_frames(output), _frames(reference), strict=True))
    if not has_ssim(pairs[0][0]):
        raise ServingError("outputs with a side below 11 px have no SSIM; draw them at a larger size, by --field")
    found = {measure: statistics.fmean(by(*pair) for pair in pairs) for measure, by in _OF_FRAMES.items()}
    return found | ({FLICKER: flicker(output.array, reference.array)} if isinstance(output, VideoOutput) else {})


def _finite_psnr(image: Array, reference: Array) -> float:
    return PSNR.finite(psnr(image, reference))  # else one equal frame would make the mean infinite


_OF_FRAMES: Mapping[Measure, Callable[[Array, Array], float]] = {FLIP: flip, SSIM: ssim, PSNR: _finite_psnr}


def _frames(media: Media) -> list[Array]:
    """Return a picture, or the measured frames of a video, as floats in [0, 1]."""
    array = media.array if isinstance(media, VideoOutput) else media.array[None]
    return list(floats(array[spread(len(array), FRAMES)]))
