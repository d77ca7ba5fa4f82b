"""Places of a HEIF file's items: the table `iloc` (ISO/IEC 14496-12, 8.11.3)."""

from __future__ import annotations

from collections.abc import Iterator

from cache_dit_serving.media.structure.excessive import at_most

MOST_EXTENTS = 4_000
"""Maximum number of pieces of all items; most items have one."""
LONGEST_ITEM = 2**16
"""Bytes of an item that are looked at: its headers come first."""


def item_beginnings(content: bytes, begin: int, end: int, idat: int) -> Iterator[bytes]:
    """Yield the begin of each extent of each item; stop where the table is cut off.

    Args:
        begin: of the table's data, its version first.
        idat: position of the data of the box `idat`, which some items count from.

    Raises:
        Excessive: too many extents; one may take no byte of the table.
    """
    place, extents = begin, 0

    def number(size: int) -> int:
        nonlocal place
        if place + size > end:
            raise EOFError
        place += size
        return int.from_bytes(content[place - size : place])

    try:
        version = number(4) >> 24  # flags follow it
        sizes = number(2)
        offset_size, length_size, base_size = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15
        index_size = sizes & 15 if version else 0
        wide = 4 if version > 1 else 2
        for _ in range(number(wide)):
            number(wide)
            start = idat if version and number(2) & 15 == 1 else 0
            number(2)
            base = number(base_size) + start
            count = number(2)
            extents += count
            at_most(MOST_EXTENTS, extents, "pieces of items")
            for _ in range(count):
                number(index_size)
                at, length = base + number(offset_size), number(length_size)
                yield content[at : at + min(length or LONGEST_ITEM, LONGEST_ITEM)]
    except EOFError:
        return
