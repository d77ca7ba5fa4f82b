"""Measures of the search: their values, finite for equal outputs."""

from __future__ import annotations

import numpy as np
import pytest

from cache_dit_serving.caching.speed_settings import FloorSettings
from cache_dit_serving.errors import ServingError
from cache_dit_serving.measure.distances.table import GREATEST_DB, ROWS
from cache_dit_serving.measure.distances.videos import flicker
from cache_dit_serving.measure.search.measures import FLICKER, FRAMES, OF_KIND, PSNR, SNR, SPECTRAL, measured
from cache_dit_serving.media.values import AudioOutput, ImageOutput, MediaKind, VideoOutput
from tests.support.random_outputs import two_outputs


@pytest.mark.parametrize("kind", OF_KIND)
def test_values_are_finite_and_equal_outputs_have_the_least_loss(kind: MediaKind) -> None:
    ours, reference = two_outputs(kind)
    apart, same = measured(ours, reference), measured(ours, ours)
    for measure in OF_KIND[kind]:
        assert kind in measure.kinds
        assert measure.loss(same[measure.name]) == pytest.approx(measure.least_loss, abs=1e-6)
        assert measure.loss(apart[measure.name]) > measure.least_loss
        assert measure.value(measure.loss(apart[measure.name])) == apart[measure.name]
    assert set(apart) == {measure.name for measure in OF_KIND[kind]}
    assert np.isfinite([*apart.values(), *same.values()]).all()


def test_the_search_measures_every_row_that_compares_whole_outputs() -> None:
    for kind, measures in OF_KIND.items():
        left_out = {row.name for row in ROWS if kind in row.kinds and not row.needs} - {each.name for each in measures}
        assert left_out == {"max_difference", "mean_difference"}


def test_a_configuration_may_have_a_floor_by_each_of_them_within_its_range() -> None:
    measures = {measure.name: measure for each in OF_KIND.values() for measure in each}
    assert FloorSettings.model_fields.keys() == measures.keys()
    for name, schema in FloorSettings.model_json_schema()["properties"].items():
        measure, bounds = measures[name], schema["anyOf"][0]
        assert bounds["minimum"] == measure.finite(measure.low)
        assert bounds.get("maximum", np.inf) == measure.finite(measure.high)
        assert ("at least" if measure.higher_is_better else "at most") in schema["description"]


def test_a_ratio_in_decibels_is_cut_on_both_sides_and_nothing_else_is() -> None:
    silent, loud = AudioOutput(np.zeros((1, 64)), 8), AudioOutput(np.ones((1, 64)), 8)
    assert measured(silent, silent)["snr_db"] == GREATEST_DB
    assert measured(loud, silent)["snr_db"] == -GREATEST_DB
    assert PSNR.finite(31.5) == 31.5
    assert SPECTRAL.finite(140.0) == 140.0
    assert (SNR.label, SNR.least_loss) == ("SNR, dB", -GREATEST_DB)


def test_a_video_is_measured_on_eight_frames_and_its_flicker_on_all() -> None:
    reference = np.full((4 * FRAMES, 12, 12, 3), 0.5)
    video = reference.copy()
    video[1] += 0.25  # between two of the measured frames
    found = measured(VideoOutput(video, 8), VideoOutput(reference, 8))
    assert found["psnr_db"] == GREATEST_DB
    assert found[FLICKER.name] == flicker(video, reference) > 0
    video[0] += 0.25
    found = measured(VideoOutput(video, 8), VideoOutput(reference, 8))
    one = measured(ImageOutput(video[0]), ImageOutput(reference[0]))["psnr_db"]
    assert found["psnr_db"] == pytest.approx(((FRAMES - 1) * GREATEST_DB + one) / FRAMES)


@pytest.mark.parametrize(
    ("ours", "reference", "reason"),
    [
        (ImageOutput(np.zeros((10, 40, 3))), ImageOutput(np.zeros((10, 40, 3))), "at a larger size"),
        (ImageOutput(np.zeros((12, 12, 3))), ImageOutput(np.zeros((12, 16, 3))), "in kind or shape"),
        (ImageOutput(np.zeros((1, 12, 3))), VideoOutput(np.zeros((1, 12, 3)), 8), "in kind or shape"),
    ],
)
def test_outputs_that_cannot_be_measured_end_the_search_with_the_reason(
    ours: ImageOutput, reference: ImageOutput | VideoOutput, reason: str
) -> None:
    with pytest.raises(ServingError, match=reason):
        measured(ours, reference)
