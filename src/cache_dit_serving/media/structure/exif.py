"""Check of EXIF data, a small TIFF file inside PNG, JPEG and WebP."""

from __future__ import annotations

import struct

from cache_dit_serving.media.structure.excessive import Excessive, at_most

MOST_TAGS = 2_000
"""Maximum number of tags in all directories together. Cameras write about a hundred."""
DIRECTORIES = frozenset({0x8769, 0x8825, 0xA005})
"""Tags that point to a directory: Exif, GPS and interoperability."""
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
"""Bytes per value, by TIFF type."""
ENTRY = 12
"""Bytes per directory entry."""


def check_exif(data: bytes) -> None:
    """Count the tags and the bytes of their values. Overlapping values could claim the same bytes many times.

    Raises:
        Excessive: more than `MOST_TAGS` tags, or the values take more than twice the bytes of the data.
    """
    data = data.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None or len(data) < 8:
        return
    waiting, seen, tags, value_bytes = [struct.unpack_from(order + "I", data, 4)[0]], set[int](), 0, 0
    while waiting:
        begin = waiting.pop()
        if begin in seen or begin + 2 > len(data):
            continue
        seen.add(begin)
        (count,) = struct.unpack_from(order + "H", data, begin)
        count = min(count, (len(data) - begin - 2) // ENTRY)
        tags += count
        at_most(MOST_TAGS, tags, "EXIF tags")
        for index in range(count):
            tag, kind, values, at = struct.unpack_from(order + "HHII", data, begin + 2 + index * ENTRY)
            size = SIZES.get(kind, 0) * values
            if at + size <= len(data):
                value_bytes += size
            if tag in DIRECTORIES:
                waiting.append(at)
    if value_bytes > 2 * len(data):
        raise Excessive("holds EXIF tags whose values overlap")
