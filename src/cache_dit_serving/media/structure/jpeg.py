"""Check of a JPEG: its segments and scans."""

from __future__ import annotations

import re
import struct

from cache_dit_serving.media.structure.excessive import at_most
from cache_dit_serving.media.structure.exif import check_exif

MOST_SEGMENTS = 4_000
"""Maximum number of segments. 20 MB of extended XMP and colour profiles take 320, of 64 kB each."""
MOST_FILLER = 2**16
"""Maximum number of bytes outside of segments. PIL reads them one at a time."""
FEW_SCANS, MOST_SCANS = 16, 200
"""Maximum number of scans of a large image, and of a small one. Encoders write 10 to 20, libjpeg's scripts to 100."""
MOST_SCANNED_PIXELS = 2**28
"""Maximum of width x height x scans once there are more than `FEW_SCANS`. Each scan visits the whole image."""
MOST_PHOTOSHOP_BLOCKS = 5_000
_FILL = re.compile(rb"\xff+")
_AFTER_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""Marker that ends entropy-coded data: any but a stuffed byte or a restart."""
_ALONE = frozenset({0x00, 0x01, *range(0xD0, 0xD9)})
"""Markers without a length field."""
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_SCAN, _END, _APP1, _APP2 = 0xDA, 0xD9, 0xE1, 0xE2


def check_jpeg(content: bytes) -> tuple[int, int] | None:
    """Count the segments and scans of a JPEG, up to its end mark.

    Returns:
        (width, height) from the frame header, pixels; None without one.

    Raises:
        Excessive: too many segments, scans, EXIF tags or bytes outside of segments.
    """
    size: tuple[int, int] | None = None
    exif: list[bytes] = []
    position, segments, scans, filler = 2, 0, 0, 0
    while True:
        begin = content.find(b"\xff", position)
        if begin < 0:
            break
        run = _FILL.match(content, begin)
        assert run is not None
        at = run.end()
        filler += at - 1 - position
        at_most(MOST_FILLER, filler, "bytes outside of its segments")
        if at >= len(content) or (marker := content[at]) == _END:
            break
        position, segments = at + 1, segments + 1
        at_most(MOST_SEGMENTS, segments, "segments")
        if marker in _ALONE or position + 2 > len(content):
            continue
        data, position = position + 2, position + struct.unpack_from(">H", content, position)[0]
        if marker in _FRAMES and data + 5 <= len(content) and size is None:
            height, width = struct.unpack_from(">HH", content, data + 1)
            size = width, height
        elif marker == _APP1 and content.startswith(b"Exif\0\0", data):
            exif.append(content[data + 6 : position])
        elif marker == _APP2 and content.startswith(b"MPF\0", data):
            check_exif(content[data + 4 : position])
        elif marker == _SCAN:
            scans += 1
            found = _AFTER_SCAN.search(content, position)
            position = found.start() if found else len(content)
    check_exif(b"".join(exif))
    at_most(_most_scans(size), scans, "scans at this size")
    at_most(MOST_PHOTOSHOP_BLOCKS, content.count(b"8BIM"), "Photoshop blocks")
    return size


def _most_scans(size: tuple[int, int] | None) -> int:
    width, height = size or (0, 0)
    return min(MOST_SCANS, max(FEW_SCANS, MOST_SCANNED_PIXELS // max(1, width * height)))
