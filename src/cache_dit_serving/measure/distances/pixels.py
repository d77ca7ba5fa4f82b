"""Pixels as measures take them: floats in [0, 1], two arrays of one shape."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cache_dit_serving.media.values import Array

Pixels = NDArray[Any]
"""(height, width, 3) floats in [0, 1], or bytes."""


def floats(array: Array) -> Pixels:
    """Return bytes as float32 in [0, 1]; floats stay as they are."""
    return array.astype(np.float32) / np.float32(255) if array.dtype == np.uint8 else array


def same_shape(ours: Array, reference: Array) -> None:
    """Check that two outputs can be compared value by value.

    Raises:
        ValueError: their shapes differ; numpy would broadcast some of these.
    """
    if ours.shape != reference.shape:
        raise ValueError(f"outputs of one shape can be compared; these have {ours.shape} and {reference.shape}")
