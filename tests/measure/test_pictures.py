"""PSNR and SSIM against scikit-image and values worked out by hand, and their bounds."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cache_dit_serving.measure.distances.pictures import difference, psnr, ssim
from cache_dit_serving.measure.distances.pixels import Pixels
from tests.support.reference_pictures import PAIRS

REFERENCE = json.loads(Path(__file__).with_name("reference.json").read_text())
RANDOM = np.random.default_rng(0)
IMAGE = RANDOM.random((40, 30, 3))


@pytest.mark.parametrize("name", PAIRS)
def test_figures_are_those_of_scikit_image(name: str) -> None:
    ours, reference = PAIRS[name]
    expected = REFERENCE["figures"][name]
    assert psnr(ours, reference) == pytest.approx(expected["psnr_db"], abs=1e-6)
    assert ssim(ours, reference) == pytest.approx(expected["ssim"], abs=1e-6)


@pytest.mark.parametrize("measure", [psnr, ssim, difference])
def test_pictures_of_other_shapes_are_refused(measure: Callable[[Pixels, Pixels], object]) -> None:
    with pytest.raises(ValueError, match="of one shape"):
        measure(IMAGE, IMAGE[:1])


def test_ssim_refuses_a_picture_below_its_window() -> None:
    with pytest.raises(ValueError, match="11 x 11 px; these have 30 x 10"):
        ssim(IMAGE[:10], IMAGE[:10])


def test_equal_pictures() -> None:
    assert math.isinf(psnr(IMAGE, IMAGE))
    assert ssim(IMAGE, IMAGE) == pytest.approx(1)
    assert difference(IMAGE, IMAGE).max() == 0


def test_a_constant_shift() -> None:
    # PSNR of a shift d is -20 log10 d; SSIM of two flat pictures is their luminance term alone.
    flat, shifted = np.full((20, 20, 3), 0.5), np.full((20, 20, 3), 0.6)
    assert psnr(flat, shifted) == pytest.approx(20)
    assert ssim(flat, shifted) == pytest.approx((2 * 0.5 * 0.6 + 1e-4) / (0.25 + 0.36 + 1e-4))


def test_ssim_falls_with_noise_and_is_negative_for_an_inverted_structure() -> None:
    scores = [ssim(IMAGE, np.clip(IMAGE + RANDOM.normal(0, sigma, IMAGE.shape), 0, 1)) for sigma in (0.02, 0.1, 0.4)]
    assert scores == sorted(scores, reverse=True)
    assert ssim(IMAGE, 1 - IMAGE) < 0


def test_ssim_is_the_windowed_formula_at_one_pixel() -> None:
    # 11 x 11 px leave a single window: Wang et al.'s formula written out with its weights.
    a, b = IMAGE[:11, :11], RANDOM.random((11, 11, 3))
    line = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = np.outer(line, line)[:, :, None] / np.outer(line, line).sum()
    mean_a, mean_b = ((window * x).sum((0, 1)) for x in (a, b))
    var_a, var_b = ((window * (x - mean) ** 2).sum((0, 1)) for x, mean in ((a, mean_a), (b, mean_b)))
    both = (window * (a - mean_a) * (b - mean_b)).sum((0, 1))
    expected = (
        (2 * mean_a * mean_b + 1e-4) * (2 * both + 9e-4) / ((mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4))
    )
    assert ssim(a, b) == pytest.approx(expected.mean())


def test_the_greatest_difference_is_drawn_white() -> None:
    other = IMAGE.copy()
    other[3, 4] += 0.01
    shown = difference(IMAGE, other)
    assert shown[3, 4] == pytest.approx([1, 1, 1])
    assert np.count_nonzero(shown) == 3
