"""Bounds of the pictures and videos that requests bring."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from cache_dit_serving.errors import InvalidRequest

MOST_RATIO = 32
"""Longer side by the shorter one."""


class Bounds(Protocol):
    """The part of the section `inputs` of the settings that holds for a file, whatever its way here."""

    @property
    def max_bytes(self) -> int:
        """Bytes of one file."""

    @property
    def max_side(self) -> int:
        """Pixels of one side of a picture or frame."""

    @property
    def max_pixels(self) -> int:
        """Pixels of all pictures of one request."""

    @property
    def max_video_pixels(self) -> int:
        """Pixels of all frames that are read of a video."""


@dataclass(frozen=True)
class FixedBounds:
    """Bounds as plain values."""

    max_bytes: int
    max_side: int
    max_pixels: int
    max_video_pixels: int


def check_shape(size: tuple[int, int], bounds: Bounds, param: str) -> None:
    """Refuse a side or a ratio of sides that makes resizing expensive, whatever the number of pixels.

    Raises:
        InvalidRequest: naming `param` and the remedy.
    """
    longer, shorter = max(size), min(size)
    if longer > bounds.max_side:
        limit = f"a side may have {bounds.max_side:,}: send a smaller one"
    elif longer > MOST_RATIO * shorter:
        limit = f"one side may be at most {MOST_RATIO} times the other: crop it"
    else:
        return
    raise InvalidRequest(f"{param} has {size[0]:,} x {size[1]:,} pixels; {limit}", param=param, code="too_long")
