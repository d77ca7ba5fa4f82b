"""Images from floats to bytes."""

from __future__ import annotations

import numpy as np
import pytest

from cache_dit_serving.media.images import ROWS_AT_ONCE, pixels_of


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("height", [1, ROWS_AT_ONCE, 2 * ROWS_AT_ONCE + 1])
@pytest.mark.parametrize("planar", [True, False])
def test_each_float_becomes_its_nearest_byte(height: int, planar: bool, dtype: type[np.floating]) -> None:
    halves = (np.random.default_rng(height).integers(0, 510, (3, height, 40), endpoint=True) / 510).astype(dtype)
    array = halves.transpose(1, 2, 0) if planar else np.ascontiguousarray(halves.transpose(1, 2, 0))
    pixels = pixels_of(array)
    assert np.array_equal(pixels, (array * 255).round().astype(np.uint8))
    assert pixels.flags.c_contiguous
    assert pixels_of(pixels) is pixels
