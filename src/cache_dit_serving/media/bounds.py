"""Bounds of the images and videos that requests bring."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from cache_dit_serving.errors import InvalidRequest

MOST_RATIO = 32
"""Maximum ratio of the longer side to the shorter one."""


class Bounds(Protocol):
    """The `inputs` settings that limit one file, however it was sent."""

    @property
    def max_bytes(self) -> int:
        """Maximum size of one file, bytes."""

    @property
    def max_side(self) -> int:
        """Maximum side of an image or frame, pixels."""

    @property
    def max_pixels(self) -> int:
        """Maximum total area of one request's images, pixels."""

    @property
    def max_video_pixels(self) -> int:
        """Maximum total area of the frames read from one video, pixels."""


@dataclass(frozen=True)
class FixedBounds:
    """Bounds as plain values, which a decoder process receives in a message."""

    max_bytes: int
    max_side: int
    max_pixels: int
    max_video_pixels: int


def check_shape(size: tuple[int, int], bounds: Bounds, param: str) -> None:
    """Refuse a side or an aspect ratio that makes resizing expensive even at few pixels.

    Raises:
        InvalidRequest: a side exceeds `max_side`, or the ratio exceeds `MOST_RATIO`.
    """
    longer, shorter = max(size), min(size)
    if longer > bounds.max_side:
        limit = f"a side may have {bounds.max_side:,}: send a smaller one"
    elif longer > MOST_RATIO * shorter:
        limit = f"one side may be at most {MOST_RATIO} times the other: crop it"
    else:
        return
    raise InvalidRequest(f"{param} has {size[0]:,} x {size[1]:,} pixels; {limit}", param=param, code="too_long")
