"""Flicker against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from cache_dit_serving.measure.distances.videos import flicker

MOVING = np.random.default_rng(1).random((6, 8, 8, 3))


def test_an_error_that_stays_still_does_not_flicker() -> None:
    assert flicker(MOVING, MOVING) == 0
    assert flicker(MOVING + 0.1, MOVING) == pytest.approx(0)


def test_an_error_that_comes_and_goes_flickers_by_its_size() -> None:
    blinking = MOVING + 0.1 * (np.arange(6) % 2)[:, None, None, None]
    assert flicker(blinking, MOVING) == pytest.approx(0.1)


def test_an_error_in_one_frame_counts_as_it_comes_and_as_it_goes() -> None:
    other = MOVING.copy()
    other[2] += 0.2
    assert flicker(other, MOVING) == pytest.approx(2 * 0.2 / 5)


def test_a_single_frame_does_not_flicker() -> None:
    assert flicker(MOVING[:1], MOVING[1:2]) == 0


def test_bytes_flicker_as_the_floats_they_stand_for() -> None:
    ours, reference = np.zeros((2, 4, 4, 3), np.uint8), np.zeros((2, 4, 4, 3), np.uint8)
    ours[0] = 255
    assert flicker(ours, reference) == 1
