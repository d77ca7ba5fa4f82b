"""Check of an AVIF or HEIC file: the boxes of a still image (ISO/IEC 23008-12) or of an image sequence."""

from __future__ import annotations

import struct

from cache_dit_serving.media.structure.av1 import sequence_sizes
from cache_dit_serving.media.structure.boxes import boxes
from cache_dit_serving.media.structure.excessive import Excessive, at_most
from cache_dit_serving.media.structure.item_places import item_beginnings
from cache_dit_serving.media.structure.mp4 import check_mp4

MOST_BOXES = 4_000
"""Maximum number of boxes. A phone's 48-megapixel image has 192 tiles, each an item with several boxes."""
MOST_ITEMS = 1_000
MOST_DEPTH = 6
CONTAINERS = {b"meta": 4, b"iprp": 0, b"ipco": 0}
"""Boxes that hold boxes, and the number of bytes before the inner ones."""


def check_heif(content: bytes) -> tuple[int, int] | None:
    """Count the boxes and items of an image.

    Returns:
        (width, height) of the largest item, pixels, as the boxes or its AV1 data claim it; None if no item has a size.

    Raises:
        Excessive: too many boxes, items or samples.
    """
    check_mp4(content)
    walk = _Boxes(content)
    walk.walk(0, len(content), 0)
    if walk.is_av1 and walk.items is not None:
        # A decoder draws at the size of the data, and scales the result to that of the boxes.
        walk.sizes += sequence_sizes(item_beginnings(content, *walk.items, walk.item_data))
    return max(walk.sizes, key=lambda size: size[0] * size[1], default=None)


class _Boxes:
    """One walk through a file."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._boxes = 0
        self.sizes: list[tuple[int, int]] = []
        self.is_av1 = False
        self.items: tuple[int, int] | None = None
        """Begin and end of the table of the items' places."""
        self.item_data = 0
        """Begin of the data that lies beside that table."""

    def walk(self, begin: int, end: int, depth: int) -> None:
        """Check the boxes between two positions, and the boxes inside them."""
        at_most(MOST_DEPTH, depth, "levels of boxes")
        for name, data, box_end in boxes(self._content, begin, end):
            self._boxes += 1
            at_most(MOST_BOXES, self._boxes, "boxes")
            if name in CONTAINERS:
                self.walk(data + CONTAINERS[name], box_end, depth + 1)
            elif name == b"ispe" and data + 12 <= box_end:
                self.sizes.append(struct.unpack_from(">II", self._content, data + 4))
            elif name in (b"iinf", b"iloc"):
                self._check_items(name, data, box_end)
                self.items = (data, box_end) if name == b"iloc" else self.items
            elif name == b"idat":
                self.item_data = data
            elif name == b"av1C":
                self.is_av1 = True

    def _check_items(self, name: bytes, begin: int, end: int) -> None:
        """Compare the number of items that a table claims with the bytes it has."""
        if begin + 10 > end:
            return
        version, at = self._content[begin], begin + (4 if name == b"iinf" else 6)
        wide = version > (0 if name == b"iinf" else 1)
        (count,) = struct.unpack_from(">I" if wide else ">H", self._content, at)
        at_most(MOST_ITEMS, count, "items")
        if count > end - begin:
            raise Excessive(f"has a table {name.decode()} that claims more entries than it holds")
