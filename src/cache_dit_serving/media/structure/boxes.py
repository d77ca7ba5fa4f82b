"""Boxes of the ISO base media file format (ISO/IEC 14496-12), the container of MP4, QuickTime, AVIF and HEIC."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple


class Box(NamedTuple):
    """Name of a box, and the positions of its content in the file."""

    name: bytes
    begin: int
    end: int


def boxes(content: bytes, begin: int, end: int) -> Iterator[Box]:
    """Yield the boxes between two positions of a file, up to the first with an invalid size."""
    while begin + 8 <= end:
        size, name = struct.unpack_from(">I4s", content, begin)
        data = begin + 8
        if size == 1 and begin + 16 <= end:
            (size,) = struct.unpack_from(">Q", content, data)
            data += 8
        box_end = min(end, begin + size) if size else end
        if box_end < data:
            return
        yield Box(name, data, box_end)
        begin = box_end
