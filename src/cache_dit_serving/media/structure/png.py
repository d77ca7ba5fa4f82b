"""Check of a PNG: its chunks."""

from __future__ import annotations

import struct

from cache_dit_serving.media.structure.excessive import at_most
from cache_dit_serving.media.structure.exif import check_exif

MOST_CHUNKS = 20_000
"""Maximum number of chunks. A PNG of 20 MB has 2,500 of libpng's 8 kB."""
SIGNATURE = 8
"""Bytes before the first chunk."""


def check_png(content: bytes) -> tuple[int, int] | None:
    """Count the chunks of a PNG.

    Returns:
        (width, height) from the header, pixels; None without one.

    Raises:
        Excessive: too many chunks, or more than one colour profile.
    """
    size: tuple[int, int] | None = None
    position, chunks, profiles = SIGNATURE, 0, 0
    while position + 8 <= len(content):
        length, name = struct.unpack_from(">I4s", content, position)
        chunks += 1
        profiles += name == b"iCCP"
        at_most(MOST_CHUNKS, chunks, "chunks")
        at_most(1, profiles, "colour profile (iCCP)")
        data = position + 8
        if name == b"IHDR" and length >= 8 and data + 8 <= len(content) and size is None:
            size = struct.unpack_from(">II", content, data)
        elif name == b"eXIf":
            check_exif(content[data : data + length])
        elif name == b"IEND":
            break
        position = data + length + 4
    return size
