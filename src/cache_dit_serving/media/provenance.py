"""Machine-readable statement that a model made a file: IPTC's digital source type, as XMP.

The vocabulary: https://cv.iptc.org/newscodes/digitalsourcetype. The places of XMP in files: XMP Specification Part 3
(Adobe, 2020), which has none for FLAC; there a comment field holds the address of the term.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID

VOCABULARY = "http://cv.iptc.org/newscodes/digitalsourcetype/"
PNG_KEYWORD = "XML:com.adobe.xmp"
"""Keyword of the PNG chunk iTXt that holds XMP."""
FLAC_FIELD = "DIGITALSOURCETYPE"
"""Comment field of a FLAC that holds the address of the term. No standard names one."""
MP4_BOX = UUID("be7acfcb-97a9-42e8-9c71-999491e3afac")
"""Extended type of the MP4 box `uuid` that holds XMP."""
GIF_SCREEN_BYTES = 13
"""Length of a GIF's header and logical screen descriptor."""
GIF_EXTENSION = b"\x21\xff\x0bXMP DataXMP"
"""Begin of the GIF application extension that holds XMP."""
GIF_TRAILER = bytes([1, *range(255, -1, -1), 0])
"""End of that extension: wherever a reader of blocks enters it, the lengths lead to its last byte."""


class DigitalSource(StrEnum):
    """Origin of an output. The values are terms of IPTC's vocabulary."""

    GENERATED = "trainedAlgorithmicMedia"
    """Made by a model, from words or a control image."""
    EDITED = "compositeWithTrainedAlgorithmicMedia"
    """Made by a model of an image or video that the request brought."""
    BLANK = "algorithmicMedia"
    """Black or silence in the place of an output that the operator's safety check refused: no model made it."""

    @property
    def address(self) -> str:
        """Address of the term."""
        return VOCABULARY + self.value


@dataclass(frozen=True)
class Ingredient:
    """A file of the request that an output was made with."""

    field: str
    """Field that brought it, such as `image_urls.0`."""
    digest: str
    """`sha256:` and 64 hexadecimal digits."""


@functools.cache
def xmp_of(source: DigitalSource) -> str:
    """Return the XMP packet that states the origin."""
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
        f'Iptc4xmpExt:DigitalSourceType="{source.address}"/>'
        '</rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
    )


def pillow_options(source: DigitalSource | None) -> dict[str, bytes]:
    """Return the option with which Pillow writes the packet into a JPEG or WebP; none without a source."""
    return {} if source is None else {"xmp": xmp_of(source).encode()}


def in_mp4(content: bytes, source: DigitalSource) -> bytes:
    """Return an MP4 with the packet in a box behind all others, which moves no frame."""
    packet = xmp_of(source).encode()
    return content + (24 + len(packet)).to_bytes(4) + b"uuid" + MP4_BOX.bytes + packet


def in_gif(content: bytes, source: DigitalSource) -> bytes:
    """Return a GIF with the packet in an application extension in front of the first frame."""
    flags = content[10]
    place = GIF_SCREEN_BYTES + (3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0)
    return content[:place] + GIF_EXTENSION + xmp_of(source).encode() + GIF_TRAILER + content[place:]


def in_wav(content: bytes, source: DigitalSource) -> bytes:
    """Return a WAV with the packet in a chunk `_PMX` behind all others."""
    packet = xmp_of(source).encode()
    chunk = b"_PMX" + len(packet).to_bytes(4, "little") + packet + bytes(len(packet) % 2)
    riff_bytes = int.from_bytes(content[4:8], "little") + len(chunk)
    return content[:4] + riff_bytes.to_bytes(4, "little") + content[8:] + chunk
