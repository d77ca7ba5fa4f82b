"""Check of a WebP: its chunks."""

from __future__ import annotations

import struct

from cache_dit_serving.media.structure.excessive import at_most
from cache_dit_serving.media.structure.exif import check_exif

MOST_CHUNKS = 10_000
"""Maximum number of chunks. A still image has about five, an animation one per frame."""
HEADER = 12
"""Bytes before the first chunk."""


def check_webp(content: bytes) -> tuple[int, int] | None:
    """Count the chunks of a WebP.

    Returns:
        (width, height) of the canvas, pixels; None without one.

    Raises:
        Excessive: too many chunks or EXIF tags.
    """
    size: tuple[int, int] | None = None
    position, chunks = HEADER, 0
    while position + 8 <= len(content):
        name, length = struct.unpack_from("<4sI", content, position)
        chunks += 1
        at_most(MOST_CHUNKS, chunks, "chunks")
        data = content[position + 8 : position + 8 + min(length, 10)]
        if size is None and len(data) == 10:
            size = _size(name, data)
        if name == b"EXIF":
            check_exif(content[position + 8 : position + 8 + length])
        position += 8 + length + length % 2
    return size


def _size(name: bytes, data: bytes) -> tuple[int, int] | None:
    if name == b"VP8X":
        width, height = (int.from_bytes(data[begin : begin + 3], "little") + 1 for begin in (4, 7))
    elif name == b"VP8L":
        bits = int.from_bytes(data[1:5], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif name == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 6))
    else:
        return None
    return width, height
