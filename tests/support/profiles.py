"""Colour profiles (ICC.1:2010) of kinds that files hold, each with colours unlike those of sRGB."""

from __future__ import annotations

import struct

import numpy as np
from PIL import ImageCms

CURVE_OF_GAMMA_1 = struct.pack(">4s4xI", b"curv", 0)
D50 = struct.pack(">4s4x3I", b"XYZ ", 0xF6D6, 0x10000, 0xD32D)
GRID, CURVE = 2, 256
"""Points of a table along a channel, and values of its curves."""


def srgb() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def swapped() -> bytes:
    """sRGB whose red is its green and its green its red."""
    content = srgb()
    table = 128 + 4 + 12 * struct.unpack_from(">I", content, 128)[0]
    tags = content[128:table].replace(b"rXYZ", b"____").replace(b"gXYZ", b"rXYZ").replace(b"____", b"gXYZ")
    return content[:128] + tags + content[table:]


def linear_grey() -> bytes:
    """Grey without the curve that screens have."""
    return _profile(b"mntr", b"GRAY", b"XYZ ", {b"wtpt": D50, b"kTRC": CURVE_OF_GAMMA_1})


def inks() -> bytes:
    """A press on which each ink, whatever its colour, is black."""
    linear = bytes(range(256))
    lightness = [max(0, 255 - 90 * sum(map(int, f"{corner:04b}"))) for corner in range(GRID**4)]
    colours = b"".join(bytes((value, 128, 128)) for value in lightness)
    identity = np.array([65536, 0, 0, 0, 65536, 0, 0, 0, 65536])
    table = struct.pack(">4s4xBBBx9i", b"mft1", 4, 3, GRID, *identity) + linear * 4 + colours + linear * 3
    return _profile(b"prtr", b"CMYK", b"Lab ", {b"wtpt": D50, b"A2B0": table})


def _profile(kind: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    begin = 128 + 4 + 12 * len(tags)
    table, data = struct.pack(">I", len(tags)), b""
    for name, content in tags.items():
        table += struct.pack(">4sII", name, begin + len(data), len(content))
        data += content + bytes(-len(content) % 4)
    header = struct.pack(
        ">I4xI4s4s4s12x4s28x3I",
        begin + len(data),
        0x02400000,
        kind,
        space,
        connection,
        b"acsp",
        0xF6D6,
        0x10000,
        0xD32D,
    )
    return header.ljust(128, b"\0") + table + data
