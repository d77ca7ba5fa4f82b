"""Sizes that the AV1 data of a picture claims, whatever its container says.

AV1 Bitstream Specification, 5.3 and 5.5. A frame that overrides the size of its sequence is left to the limits of the
decoding process.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from cache_dit_serving.media.structure.excessive import at_most

MOST_UNITS = 4_000
"""Maximum number of open bitstream units of all items; a still picture has about three, a tile of a grid too."""
SEQUENCE_HEADER = 1
LONGEST_HEADER = 128
"""Bytes of a sequence header that are looked at; with 32 operating points it has fewer."""


def sequence_sizes(items: Iterable[bytes]) -> Iterator[tuple[int, int]]:
    """Yield the (width, height) of each sequence header, pixels; a header that is cut off is passed over.

    Args:
        items: data of each item, from its begin.

    Raises:
        Excessive: too many units.
    """
    units = 0
    for data in items:
        for kind, begin, length in _units(data):
            units += 1
            at_most(MOST_UNITS, units, "AV1 units")
            if kind == SEQUENCE_HEADER:
                with contextlib.suppress(EOFError):
                    yield _size(_Bits(data[begin : begin + min(length, LONGEST_HEADER)]))


def _units(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield the kind of each unit, the position of its content and its length."""
    position = 0
    while position < len(data):
        first = data[position]
        if first & 0x80:
            return  # no AV1
        position += 2 if first & 0b100 else 1
        length = len(data) - position
        if first & 0b10:
            length, position = _leb128(data, position)
        yield first >> 3 & 0b1111, position, length
        position += length


def _leb128(data: bytes, position: int) -> tuple[int, int]:
    """Return a number, and the position behind it."""
    value = 0
    for index, byte in enumerate(data[position : position + 8]):
        value |= (byte & 0x7F) << 7 * index
        if not byte & 0x80:
            return value, position + index + 1
    return 0, position + 8


class _Bits:
    """Reader of bits, the highest of each byte first."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data)
        self._left = 8 * len(data)

    def read(self, count: int) -> int:
        """
        Raises:
            EOFError: there are no more.
        """
        self._left -= count
        if self._left < 0:
            raise EOFError
        return self._value >> self._left & ((1 << count) - 1)


def _size(bits: _Bits) -> tuple[int, int]:
    bits.read(4)  # profile, still picture
    if bits.read(1):  # reduced header
        bits.read(5)
    else:
        _skip_timing_and_points(bits)
    width_bits, height_bits = bits.read(4) + 1, bits.read(4) + 1
    return bits.read(width_bits) + 1, bits.read(height_bits) + 1


def _skip_timing_and_points(bits: _Bits) -> None:
    delay_bits = 0
    if bits.read(1):
        bits.read(64)
        if bits.read(1):  # equal intervals: a number in Exp-Golomb code
            zeros = 0
            while not bits.read(1):
                zeros += 1
            bits.read(zeros)
        if bits.read(1):  # decoder model
            delay_bits = bits.read(5) + 1
            bits.read(32 + 5 + 5)
    has_display_delay = bits.read(1)
    for _ in range(bits.read(5) + 1):
        bits.read(12)
        if bits.read(5) > 7:
            bits.read(1)
        if delay_bits and bits.read(1):
            bits.read(2 * delay_bits + 1)
        if has_display_delay and bits.read(1):
            bits.read(4)
