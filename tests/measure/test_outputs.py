"""Every kind of output has a distance with the measures of the kind."""

from __future__ import annotations

import numpy as np
import pytest

from cache_dit_serving.measure.distances.flip import flip
from cache_dit_serving.measure.distances.outputs import DISTANCES, FLIP_FRAMES, distance
from cache_dit_serving.measure.distances.pictures import psnr
from cache_dit_serving.measure.distances.pixels import Pixels
from cache_dit_serving.media.values import ImageOutput, MediaKind, VideoOutput
from tests.support.random_outputs import two_outputs
from tests.support.reference_pictures import smooth


def test_every_kind_has_a_distance() -> None:
    assert set(DISTANCES) == set(MediaKind)


@pytest.mark.parametrize("kind", DISTANCES)
def test_a_kind_measures_its_outputs(kind: MediaKind) -> None:
    ours, reference = two_outputs(kind)
    apart, same = distance(ours, reference), distance(ours, ours)
    assert (same.max_difference, same.mean_difference) == (0, 0)
    assert 0 < apart.mean_difference < apart.max_difference
    assert apart.shown.kind is kind
    assert float(abs(apart.shown.array).max()) == pytest.approx(1)
    assert (apart.worst_frame is not None) == (kind is MediaKind.VIDEO)


def test_a_video_has_medians_and_its_worst_frame() -> None:
    reference = np.stack([smooth(1, 16, 20)] * 5)
    video = reference.copy()
    video[1:] = np.clip(video[1:] + 0.02, 0, 1)
    video[3] = 1 - video[3]
    apart = distance(VideoOutput(video, 8), VideoOutput(reference, 8))
    assert apart.worst_frame is not None
    assert apart.worst_frame.number == 3
    assert apart.worst_frame.psnr_db == psnr(video[3], reference[3]) < 30
    assert apart.worst_frame.flip == flip(video[3], reference[3])
    assert apart.psnr_db == psnr(video[1], reference[1])
    assert apart.flip == flip(video[1], reference[1])


def test_flip_is_measured_of_sixteen_frames_and_the_worst() -> None:
    measured: list[float] = []

    def counted(ours: Pixels, reference: Pixels) -> float:
        measured.append(float(ours.max()))
        return 0.5

    video = np.arange(40, dtype=np.float64)[:, None, None, None] / 40 + np.zeros((40, 12, 12, 3))
    reference = video.copy()
    reference[6] = 1
    assert distance(VideoOutput(video, 8), VideoOutput(reference, 8), counted).flip == 0.5
    assert len(measured) == FLIP_FRAMES + 1
    assert {0.0, 6 / 40, 39 / 40} <= set(measured)


def test_a_picture_below_the_window_of_ssim_has_the_other_measures() -> None:
    small, other = np.full((10, 40, 3), 0.5), np.full((10, 40, 3), 0.6)
    apart = distance(ImageOutput(small), ImageOutput(other))
    assert apart.ssim is None
    assert apart.psnr_db == pytest.approx(20)
    assert apart.flip is not None


def test_bytes_are_measured_as_the_floats_they_stand_for() -> None:
    ours, reference = ((255 * smooth(seed, 20, 20)).round().astype(np.uint8) for seed in (1, 2))
    of_bytes = distance(ImageOutput(ours), ImageOutput(reference))
    of_floats = distance(ImageOutput(ours / np.float32(255)), ImageOutput(reference / np.float32(255)))
    assert of_bytes.max_difference == of_floats.max_difference <= 1
    assert (of_bytes.psnr_db, of_bytes.ssim, of_bytes.flip) == (of_floats.psnr_db, of_floats.ssim, of_floats.flip)


def test_outputs_of_other_shapes_or_kinds_are_refused() -> None:
    one, two = ImageOutput(np.zeros((12, 12, 3))), ImageOutput(np.zeros((1, 12, 3)))
    with pytest.raises(ValueError, match="of one shape"):
        distance(one, two)
    with pytest.raises(ValueError, match="of one kind"):
        distance(one, VideoOutput(np.zeros((1, 12, 12, 3)), 8))
