"""What a pipeline makes, as arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Picture:
    pixels: np.ndarray[Any, Any]
    """(height, width, 3) floats in [0, 1]."""


Media = Picture
"""Of any kind: the one that the served tasks make."""
