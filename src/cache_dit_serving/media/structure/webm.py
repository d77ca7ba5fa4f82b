"""Check of a WebM or Matroska file: its elements."""

from __future__ import annotations

from cache_dit_serving.media.structure.excessive import at_most

MOST_ELEMENTS = 150_000
"""Maximum number of elements. Each frame is one; half an hour of video and sound has about this many."""
MOST_DEPTH = 8
MOST_TRACKS = 16
MASTERS = frozenset(
    {
        0x18538067,  # Segment
        0x114D9B74,  # SeekHead
        0x4DBB,  # Seek
        0x1654AE6B,  # Tracks
        0xAE,  # TrackEntry
        0x6D80,  # ContentEncodings
        0x6240,  # ContentEncoding
        0x1F43B675,  # Cluster
        0xA0,  # BlockGroup
        0x75A1,  # BlockAdditions
        0x1C53BB6B,  # Cues
        0xBB,  # CuePoint
        0xB7,  # CueTrackPositions
        0x1254C367,  # Tags
        0x7373,  # Tag
        0x67C8,  # SimpleTag
        0x1043A770,  # Chapters
        0x45B9,  # EditionEntry
        0xB6,  # ChapterAtom
        0x1941A469,  # Attachments
        0x61A7,  # AttachedFile
    }
)
"""Elements that hold elements."""
TRACK = 0xAE


def check_webm(content: bytes) -> None:
    """Count elements and tracks.

    Raises:
        Excessive: too many elements or tracks, or elements nested too deep.
    """
    ends, position, elements, tracks = [len(content)], 0, 0, 0
    while position < len(content):
        while len(ends) > 1 and position >= ends[-1]:
            ends.pop()
        id_bytes, size_bytes = _width(content[position]), 0
        if position + id_bytes < len(content):
            size_bytes = _width(content[position + id_bytes])
        data = position + id_bytes + size_bytes
        if not id_bytes or not size_bytes or data > len(content):
            return
        element = int.from_bytes(content[position : position + id_bytes], "big")
        mask = (1 << 7 * size_bytes) - 1
        size = int.from_bytes(content[position + id_bytes : data], "big") & mask
        elements += 1
        at_most(MOST_ELEMENTS, elements, "elements")
        tracks += element == TRACK
        at_most(MOST_TRACKS, tracks, "tracks")
        if element in MASTERS:
            # A size of all ones means unknown: the cluster or segment of a live stream.
            ends.append(ends[-1] if size == mask else min(ends[-1], data + size))
            at_most(MOST_DEPTH, len(ends), "levels of elements")
            position = data
        else:
            position = data + size


def _width(first: int) -> int:
    """Return the length in bytes of a variable-size integer, given its first byte; 0 if the byte is invalid."""
    return 9 - first.bit_length() if first else 0
