"""Pictures as clients send them, good and bad."""

from __future__ import annotations

import base64
import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image, ImageDraw


def file_of(image: Image.Image, image_format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def base64_of(content: bytes) -> str:
    return base64.b64encode(content).decode()


def data_uri(content: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64_of(content)}"


def apple(width: int = 96, height: int = 96) -> Image.Image:
    """A red disc on blue, unlike itself turned or mirrored."""
    image = Image.new("RGB", (width, height), (40, 90, 210))
    draw = ImageDraw.Draw(image)
    draw.ellipse((width // 4, height // 4, width * 3 // 4, height * 3 // 4), fill=(220, 40, 50))
    draw.rectangle((0, 0, width // 4, height // 8), fill=(250, 250, 0))
    return image


def mask(width: int = 96, height: int = 96) -> Image.Image:
    """White in its right half."""
    image = Image.new("L", (width, height), 0)
    ImageDraw.Draw(image).rectangle((width // 2, 0, width, height), fill=255)
    return image


def noise(width: int, height: int) -> Image.Image:
    """A picture that no format makes small."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def png_that_claims(width: int, height: int) -> bytes:
    """The header of a PNG with few bytes behind it."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(100_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
