"""Small files that claim to hold far more than they do: one for each way to make a decoder work."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

from PIL import Image

from tests.support.images import file_of, noise

JFIF_END = 20
"""Position behind a JPEG's first segment."""
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, before: bytes = b"") -> bytes:
    """A black picture in grey of 1 bit, whole, with these chunks before its pixels."""
    row = bytes(1 + (width + 7) // 8)
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    pixels = zlib.compress(row * height, 9)
    chunks = png_chunk(b"IHDR", header) + before + png_chunk(b"IDAT", pixels) + png_chunk(b"IEND", b"")
    return PNG_SIGNATURE + chunks


def colour_profiles(count: int) -> bytes:
    """Each of a megabyte when unpacked."""
    return png_chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(2**20 - 64), 9)) * count


def jpeg_segments(segment: bytes, count: int) -> bytes:
    """A JPEG with so many of one segment behind its first one."""
    content = file_of(noise(64, 64), "JPEG")
    return content[:JFIF_END] + segment * count + content[JFIF_END:]


def jpeg_scans(count: int, side: int = 2048) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    content = file_of(Image.new("RGB", (side, side)), "JPEG", progressive=True)
    begin = content.rindex(b"\xff\xda")
    return content[:-2] + content[begin:-2] * count + content[-2:]


def exif(tags: int, value_bytes: int = 4) -> bytes:
    """A TIFF directory whose values are all the same bytes of the file, if they have more than four."""
    tags = min(tags, 65_535)
    at = 8 + 2 + 12 * tags + 4
    entries = b"".join(struct.pack("<HHII", 1 + index, 1, value_bytes, at) for index in range(tags))
    return b"II*\0" + struct.pack("<IH", 8, tags) + entries + bytes(4 + value_bytes)


def jpeg_exif(tags: int) -> bytes:
    """EXIF in as many segments as it takes: PIL puts them together."""
    data = exif(tags)
    parts = [b"Exif\0\0" + data[begin : begin + 65_000] for begin in range(0, len(data), 65_000)]
    content = file_of(noise(64, 64), "JPEG")
    segments = b"".join(b"\xff\xe1" + struct.pack(">H", len(part) + 2) + part for part in parts)
    return content[:2] + segments + content[2:]


def webp_chunks(count: int) -> bytes:
    content = file_of(noise(64, 64), "WEBP", lossless=True, exif=exif(1))
    content += b"junk\0\0\0\0" * count
    return content[:4] + struct.pack("<I", len(content) - 8) + content[8:]


def webp_canvas(width: int, height: int) -> bytes:
    """A large canvas with a small frame on it: a decoder reserves the canvas as it opens the file."""
    data = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4)
    data += (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    data += file_of(noise(16, 16), "WEBP", lossless=True)[12:]
    return b"RIFF" + struct.pack("<I", len(data)) + data


def box(name: bytes, *parts: bytes) -> bytes:
    data = b"".join(parts)
    return struct.pack(">I4s", 8 + len(data), name) + data


def full_box(name: bytes, *numbers: int) -> bytes:
    """A box with a version, flags and numbers of four bytes."""
    return box(name, bytes(4), struct.pack(f">{len(numbers)}I", *numbers))


def mp4(samples: int = 1, tracks: int = 1, *more: bytes, edits: int = 0, constant: bool = True) -> bytes:
    """Tracks of H.264 that claim so many samples each, of a byte each or of no stated size."""
    entry = box(b"avc1", bytes(24), struct.pack(">HH", 64, 48), bytes(50))
    table = box(
        b"stbl",
        box(b"stsd", bytes(4), struct.pack(">I", 1), entry),
        full_box(b"stts", 1, samples, 1),
        full_box(b"stsc", 1, 1, samples, 1),
        full_box(b"stsz", 1, samples) if constant else full_box(b"stsz", 0, samples),
        full_box(b"stco", 1, 8),
        *more,
    )
    handler = box(b"hdlr", bytes(8), b"vide", bytes(13))
    media = box(b"mdia", full_box(b"mdhd", 0, 0, 12, samples, 0), handler, box(b"minf", table))
    edit = box(b"edts", box(b"elst", bytes(4), struct.pack(">I", edits), struct.pack(">III", 1, 0, 1 << 16) * edits))
    track = box(b"trak", box(b"tkhd", bytes(84)), edit if edits else b"", media)
    return box(b"ftyp", b"isom", bytes(4), b"isom") + box(b"moov", full_box(b"mvhd", *[0] * 24), track * tracks)


def fragmented(samples: int) -> bytes:
    """A fragment whose run of samples takes no byte for each."""
    run = full_box(b"trun", samples)
    return mp4() + box(b"moof", box(b"traf", full_box(b"tfhd", 1), run)) + box(b"mdat", bytes(16))


def nested(depth: int) -> bytes:
    inner = b""
    for _ in range(depth):
        inner = box(b"moov", inner)
    return box(b"ftyp", b"isom", bytes(4), b"isom") + inner


def webm(elements: int, element: bytes = b"\xec\x80") -> bytes:
    """A segment of unknown size with so many elements in it; the usual one is empty filler."""
    return b"\x1a\x45\xdf\xa3\x80" + b"\x18\x53\x80\x67\x01" + b"\xff" * 7 + element * elements


TINY_SEGMENT = b"\xff\xe5\x00\x02"
PHOTOSHOP = (
    b"\xff\xed" + struct.pack(">H", 2 + 14 + 12 * 5_000) + b"Photoshop 3.0\0" + b"8BIM\x04\x04\0\0\0\0\0\0" * 5_000
)


def avif_in_boxes_of(side: int, claimed: int) -> bytes:
    """A square AVIF whose boxes claim another side than its data."""
    content = bytearray(file_of(Image.new("RGB", (side, side)), "AVIF", speed=10))
    struct.pack_into(">II", content, content.index(b"ispe") + 8, claimed, claimed)
    return bytes(content)


def avif_of_pieces(items: int, pieces: int) -> bytes:
    """An AVIF whose items claim so many pieces each, none of which takes a byte of their table."""
    places = b"\1\0\0\0" + bytes(2) + struct.pack(">H", items) + struct.pack(">HHHH", 1, 0, 0, pieces) * items
    picture = box(b"iprp", box(b"ipco", box(b"av1C", bytes(4)), full_box(b"ispe", 64, 64)))
    return box(b"ftyp", b"avif", bytes(4), b"avifmif1") + box(b"meta", bytes(4), box(b"iloc", places), picture)


PICTURES: dict[str, Callable[[], bytes]] = {
    "a PNG of 1 x 33,554,432": lambda: png(1, 2**25),
    "a PNG of 16,000 x 400": lambda: png(16_000, 400),
    "a PNG of 15,000 colour profiles": lambda: png(64, 64, colour_profiles(15_000)),
    "a PNG of a million chunks": lambda: png(64, 64, png_chunk(b"prIv", b"") * 1_000_000),
    "a PNG of 60,000 EXIF tags": lambda: png(64, 64, png_chunk(b"eXIf", exif(60_000))),
    "a PNG of EXIF values that overlap": lambda: png(64, 64, png_chunk(b"eXIf", exif(1_500, 100_000))),
    "a JPEG of 3,000 scans": lambda: jpeg_scans(3_000),
    "a JPEG of 100 scans of 33 megapixels": lambda: jpeg_scans(100, side=5_792),
    "a JPEG of 15 MB of filler": lambda: jpeg_segments(b"\xff", 15_000_000),
    "a JPEG of 15 MB of junk": lambda: jpeg_segments(b"\x01", 15_000_000),
    "a JPEG of a million segments": lambda: jpeg_segments(TINY_SEGMENT, 1_000_000),
    "a JPEG of a million Photoshop blocks": lambda: jpeg_segments(PHOTOSHOP, 200),
    "a JPEG of 60,000 EXIF tags": lambda: jpeg_exif(60_000),
    "an AVIF of 6,000 x 6,000 in boxes of 64 x 64": lambda: avif_in_boxes_of(6_000, 64),
    "an AVIF of 60 million pieces": lambda: avif_of_pieces(900, 65_535),
    "a WebP of a million chunks": lambda: webp_chunks(1_000_000),
    "a WebP with a canvas of 16,383 x 16,383": lambda: webp_canvas(16_383, 16_383),
}
VIDEOS: dict[str, Callable[[], bytes]] = {
    "an MP4 of 89 million samples": lambda: mp4(89_000_000),
    "an MP4 of 89 million sizes": lambda: mp4(89_000_000, constant=False),
    "an MP4 of six tracks of 20 million": lambda: mp4(20_000_000, 6),
    "an MP4 of a thousand tracks": lambda: mp4(1, 1_000),
    "an MP4 of a thousand edits": lambda: mp4(1_000, edits=1_000),
    "an MP4 of 100 million offsets": lambda: mp4(1, 1, full_box(b"ctts", 1, 100_000_000, 1)),
    "an MP4 with a table that is not there": lambda: mp4(1, 1, full_box(b"ctts", 50_000_000)),
    "an MP4 of a fragment of 100 million": lambda: fragmented(100_000_000),
    "an MP4 of a million boxes": lambda: mp4() + box(b"free") * 1_000_000,
    "an MP4 of 5,000 levels": lambda: nested(5_000),
    "a WebM of ten million elements": lambda: webm(9_000_000),
    "a WebM of a thousand tracks": lambda: webm(1_000, b"\xae\x80"),
    "a WebM of 5,000 levels": lambda: webm(5_000, b"\x18\x53\x80\x67\x01" + b"\xff" * 7),
}
