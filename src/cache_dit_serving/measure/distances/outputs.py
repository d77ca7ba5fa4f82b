"""Distance between two outputs of one kind: how far the one with the cache is from the one without."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from cache_dit_serving.measure.distances.pictures import difference, psnr, ssim
from cache_dit_serving.measure.distances.sounds import snr
from cache_dit_serving.media.values import Array, AudioOutput, ImageOutput, Media, MediaKind, VideoOutput


class WorstFrame(NamedTuple):
    """Frame of a video that is the farthest from the reference's."""

    number: int
    """Index of the frame, from 0."""
    psnr_db: float
    ssim: float


@dataclass(frozen=True)
class Distance:
    """Distance between two outputs; a measure that the kind does not have is None."""

    max_difference: float
    mean_difference: float
    shown: Media
    """Differences as an output of the kind, to be looked at or listened to."""
    psnr_db: float | None = None
    ssim: float | None = None
    snr_db: float | None = None
    worst_frame: WorstFrame | None = None


def distance_of_images(image: ImageOutput, reference: ImageOutput) -> Distance:
    """Return the distance of an image from its reference."""
    distance, _ = _of_frames(image.array[None], reference.array[None], ImageOutput(_shown(image, reference)))
    return distance


def distance_of_videos(video: VideoOutput, reference: VideoOutput) -> Distance:
    """Return the distance of a video from its reference, by their frames. Sound is not measured."""
    shown = replace(video, array=_shown(video, reference), audio=None)
    distance, worst = _of_frames(video.array, reference.array, shown)
    return replace(distance, worst_frame=worst)


def distance_of_audio(audio: AudioOutput, reference: AudioOutput) -> Distance:
    """Return the distance of a sound from its reference, by their samples."""
    gap = audio.array - reference.array
    greatest = float(abs(gap).max())
    return Distance(
        max_difference=greatest,
        mean_difference=float(abs(gap).mean()),
        shown=replace(audio, array=gap / greatest if greatest else gap),
        snr_db=snr(audio.array, reference.array),
    )


class _Frame(NamedTuple):
    psnr_db: float
    ssim: float
    max_difference: float
    mean_difference: float


def _of_frames(ours: Array, reference: Array, shown: Media) -> tuple[Distance, WorstFrame]:
    frames = [_of_frame(a, b) for a, b in zip(ours, reference, strict=True)]
    worst = min(range(len(frames)), key=lambda index: frames[index][:2])
    distance = Distance(
        max_difference=max(frame.max_difference for frame in frames),
        mean_difference=statistics.fmean(frame.mean_difference for frame in frames),
        shown=shown,
        psnr_db=statistics.median(frame.psnr_db for frame in frames),
        ssim=statistics.median(frame.ssim for frame in frames),
    )
    return distance, WorstFrame(worst, *frames[worst][:2])


def _of_frame(ours: Array, reference: Array) -> _Frame:
    gap = abs(ours - reference)
    return _Frame(psnr(ours, reference), ssim(ours, reference), float(gap.max()), float(gap.mean()))


def _shown(ours: ImageOutput | VideoOutput, reference: ImageOutput | VideoOutput) -> Array:
    return difference(ours.array, reference.array)


DISTANCES: dict[MediaKind, Callable[[Any, Any], Distance]] = {
    MediaKind.IMAGE: distance_of_images,
    MediaKind.VIDEO: distance_of_videos,
    MediaKind.AUDIO: distance_of_audio,
}
"""Measure of an output against a reference of the same kind and shape, by kind."""
