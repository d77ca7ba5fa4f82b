"""Distance between two outputs of one kind: how far the one with the cache is from the one without."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from cache_dit_serving.measure.distances.flip import Flip, FlipProcess
from cache_dit_serving.measure.distances.pictures import difference, has_ssim, psnr, ssim
from cache_dit_serving.measure.distances.pixels import floats, same_shape
from cache_dit_serving.measure.distances.sounds import snr, spectral
from cache_dit_serving.measure.distances.videos import flicker
from cache_dit_serving.media.values import Array, AudioOutput, ImageOutput, Media, MediaKind, VideoOutput

FLIP_FRAMES = 16
"""Greatest number of a video's frames that FLIP is measured of, evenly spaced: a frame of 1024 px takes two seconds."""


class WorstFrame(NamedTuple):
    """Frame of a video that is the farthest from the reference's, by PSNR."""

    number: int
    """Index of the frame, from 0."""
    psnr_db: float
    ssim: float | None
    flip: float


@dataclass(frozen=True)
class Distance:
    """Distance between two outputs; a measure that the kind does not have is None. `table.py` defines the measures."""

    max_difference: float
    mean_difference: float
    shown: Media
    """Differences as an output of the kind, to be looked at or listened to."""
    psnr_db: float | None = None
    ssim: float | None = None
    """None also for pictures that are smaller than SSIM's window."""
    flip: float | None = None
    flicker: float | None = None
    snr_db: float | None = None
    spectral_db: float | None = None
    worst_frame: WorstFrame | None = None


def distance(output: Media, reference: Media, flip: Flip | None = None) -> Distance:
    """Return the distance of an output from its reference.

    Args:
        output: any kind; `reference` has the same kind and shape.
        flip: FLIP to use, such as a `FlipProcess` that lives for many comparisons; None: one in a process of its own.

    Raises:
        ValueError: the kinds or shapes differ.
        FlipEnded: FLIP's process ended.
    """
    if output.kind is not reference.kind:
        raise ValueError(f"outputs of one kind can be compared; these are {output.kind} and {reference.kind}")
    same_shape(output.array, reference.array)
    with _flip_process(flip) if output.kind is not MediaKind.AUDIO else contextlib.nullcontext() as measured:
        return DISTANCES[output.kind](output, reference, measured)


@contextlib.contextmanager
def _flip_process(flip: Flip | None) -> Iterator[Flip]:
    """Yield FLIP as given, or in a process that ends with the block."""
    if flip is not None:
        yield flip
        return
    with FlipProcess() as process:
        yield process


def _of_images(image: ImageOutput, reference: ImageOutput, flip: Flip) -> Distance:
    distance, _ = _of_frames(image.array[None], reference.array[None], ImageOutput(_shown(image, reference)), flip)
    return distance


def _of_videos(video: VideoOutput, reference: VideoOutput, flip: Flip) -> Distance:
    """Return the distance by frames and by their changes. Sound is not measured."""
    shown = replace(video, array=_shown(video, reference), audio=None)
    distance, worst = _of_frames(video.array, reference.array, shown, flip)
    return replace(distance, worst_frame=worst, flicker=flicker(video.array, reference.array))


def _of_audio(audio: AudioOutput, reference: AudioOutput, _: object) -> Distance:
    gap = audio.array - reference.array
    greatest = float(abs(gap).max())
    return Distance(
        max_difference=greatest,
        mean_difference=float(abs(gap).mean()),
        shown=replace(audio, array=gap / greatest if greatest else gap),
        snr_db=snr(audio.array, reference.array),
        spectral_db=spectral(audio.array, reference.array),
    )


class _Frame(NamedTuple):
    psnr_db: float
    ssim: float | None
    max_difference: float
    mean_difference: float


def _of_frames(ours: Array, reference: Array, shown: Media, flip: Flip) -> tuple[Distance, WorstFrame]:
    frames = [_of_frame(a, b) for a, b in zip(ours, reference, strict=True)]
    worst = min(range(len(frames)), key=lambda index: (frames[index].psnr_db, frames[index].ssim or 0))
    seen = spread(len(frames), FLIP_FRAMES)
    flips = {index: flip(ours[index], reference[index]) for index in {*seen, worst}}
    similar = [frame.ssim for frame in frames if frame.ssim is not None]
    distance = Distance(
        max_difference=max(frame.max_difference for frame in frames),
        mean_difference=statistics.fmean(frame.mean_difference for frame in frames),
        shown=shown,
        psnr_db=statistics.median(frame.psnr_db for frame in frames),
        ssim=statistics.median(similar) if similar else None,
        flip=statistics.median(flips[index] for index in seen),
    )
    return distance, WorstFrame(worst, frames[worst].psnr_db, frames[worst].ssim, flips[worst])


def spread(frames: int, most: int) -> list[int]:
    """Return the indices of at most so many frames: all, or evenly spaced from the first to the last."""
    return [round(float(index)) for index in np.linspace(0, frames - 1, min(frames, most))]


def _of_frame(ours: Array, reference: Array) -> _Frame:
    gap = abs(floats(ours) - floats(reference))
    likeness = ssim(ours, reference) if has_ssim(ours) else None
    return _Frame(psnr(ours, reference), likeness, float(gap.max()), float(gap.mean()))


def _shown(ours: ImageOutput | VideoOutput, reference: ImageOutput | VideoOutput) -> Array:
    return difference(ours.array, reference.array)


DISTANCES: dict[MediaKind, Callable[[Any, Any, Any], Distance]] = {
    MediaKind.IMAGE: _of_images,
    MediaKind.VIDEO: _of_videos,
    MediaKind.AUDIO: _of_audio,
}
"""Measure of an output against a reference of the same kind and shape, by kind; the third argument is FLIP."""
