"""Every kind of output has a distance with the measures of the kind."""

from __future__ import annotations

import pytest

from cache_dit_serving.measure.distances.outputs import DISTANCES
from cache_dit_serving.media.values import MediaKind
from tests.support.random_outputs import two_outputs


def test_every_kind_has_a_distance() -> None:
    assert set(DISTANCES) == set(MediaKind)


@pytest.mark.parametrize("kind", DISTANCES)
def test_a_kind_measures_its_outputs(kind: MediaKind) -> None:
    ours, reference = two_outputs(kind)
    apart, same = DISTANCES[kind](ours, reference), DISTANCES[kind](ours, ours)
    assert (same.max_difference, same.mean_difference) == (0, 0)
    assert 0 < apart.mean_difference < apart.max_difference
    assert apart.shown.kind is kind
    assert float(abs(apart.shown.array).max()) == pytest.approx(1)
    measured = {name for name in ("psnr_db", "ssim", "snr_db", "worst_frame") if getattr(apart, name) is not None}
    assert (
        measured
        == {
            MediaKind.IMAGE: {"psnr_db", "ssim"},
            MediaKind.VIDEO: {"psnr_db", "ssim", "worst_frame"},
            MediaKind.AUDIO: {"snr_db"},
        }[kind]
    )
