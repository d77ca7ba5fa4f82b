"""Check of an MP4 or QuickTime file: its boxes, and the samples that its tables claim."""

from __future__ import annotations

import struct

import numpy as np

from cache_dit_serving.media.structure.boxes import boxes
from cache_dit_serving.media.structure.excessive import Excessive, at_most

MOST_BOXES = 20_000
"""Maximum number of boxes. A fragment has about eight."""
MOST_DEPTH = 8
"""Maximum nesting of boxes. A track's tables are at level six: moov, trak, mdia, minf, stbl, table."""
MOST_TRACKS = 16
"""Maximum number of tracks. Phones write up to seven, most of them metadata."""
MOST_SAMPLES = 500_000
"""Maximum number of samples in all tracks, without uncompressed sound. libav keeps about 60 bytes per sample."""
MOST_EDITS = 64
"""Maximum number of edit list entries. libav visits all samples for each."""
CONTAINERS = frozenset({b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"moof", b"traf", b"mvex", b"mfra"})
ENTRIES = {b"stts": 8, b"ctts": 8, b"stsc": 12, b"stco": 4, b"co64": 8, b"stss": 4, b"elst": 12, b"trun": 0}
"""Minimum bytes per entry of a table, after its version, flags and count."""


def check_mp4(content: bytes) -> None:
    """Count boxes and tracks, and compare the entries that tables claim with the bytes they have.

    Raises:
        Excessive: too many boxes, tracks or samples, or a table that claims more than its box holds.
    """
    _Boxes(content).walk(0, len(content), 0)


class _Boxes:
    """One walk through a file."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._boxes = self._tracks = self._edits = 0
        self._samples: dict[bytes, int] = {}
        """Claimed samples by kind of table. Each is counted apart, because a sample appears in several tables."""
        self._audio = False
        """True while the boxes belong to a sound track."""
        self._constant_bytes = 0
        """Claimed bytes of uncompressed sound."""

    def walk(self, begin: int, end: int, depth: int) -> None:
        """Check the boxes between two positions, and the boxes inside them."""
        at_most(MOST_DEPTH, depth, "levels of boxes")
        for name, data, box_end in boxes(self._content, begin, end):
            self._boxes += 1
            at_most(MOST_BOXES, self._boxes, "boxes")
            self._check(name, data, box_end, depth)

    def _check(self, name: bytes, begin: int, end: int, depth: int) -> None:
        if name == b"cmov":
            raise Excessive("has a compressed header")
        if name == b"trak":
            self._tracks += 1
            at_most(MOST_TRACKS, self._tracks, "tracks")
            self._audio = False
        elif name == b"hdlr":
            self._audio = self._content[begin + 8 : begin + 12] == b"soun"
        if name in CONTAINERS:
            self.walk(begin, end, depth + 1)
        elif name in ENTRIES and begin + 8 <= end:
            self._check_table(name, begin, end)
        elif name in (b"stsz", b"stz2") and begin + 12 <= end:
            self._check_sizes(name, begin, end)

    def _check_table(self, name: bytes, begin: int, end: int) -> None:
        (count,) = struct.unpack_from(">I", self._content, begin + 4)
        _fits(name, count * ENTRIES[name], end - begin - 8)
        if name == b"elst":
            self._edits += count
            at_most(MOST_EDITS, self._edits, "entries of edit lists")
        elif name == b"trun":
            self._claim(name, count)
        elif name in (b"stts", b"ctts"):
            runs = np.frombuffer(self._content, ">u4", 2 * count, begin + 8)[::2]
            claimed = int(runs.sum(dtype=np.uint64))
            # Uncompressed sound is one run of samples of one tick each. libav keeps no table for it.
            if name == b"stts" and self._audio and count == 1 and claimed <= len(self._content):
                ticks = struct.unpack_from(">I", self._content, begin + 12)[0]
                claimed = 0 if ticks == 1 else claimed
            self._claim(name, claimed)

    def _check_sizes(self, name: bytes, begin: int, end: int) -> None:
        size, count = struct.unpack_from(">II", self._content, begin + 4)
        if name == b"stsz" and size and self._audio:
            self._constant_bytes += size * count
            if self._constant_bytes > len(self._content):
                raise Excessive("claims more samples than its bytes can hold")
            return
        width = (0 if size else 4) if name == b"stsz" else (size & 0xFF) / 8
        _fits(name, int(count * width), end - begin - 12)
        self._claim(name, count)

    def _claim(self, name: bytes, samples: int) -> None:
        self._samples[name] = self._samples.get(name, 0) + samples
        at_most(MOST_SAMPLES, self._samples[name], "samples")


def _fits(name: bytes, claimed: int, there: int) -> None:
    if claimed > there:
        raise Excessive(f"has a table {name.decode()} that claims more entries than it holds")
