"""PNG files, by fpng where its wheel is installed and by Pillow elsewhere.

fpng (https://github.com/richgel999/fpng) writes an image of 1024 x 1024 in about a fiftieth of Pillow's time at its
fastest level, and a few per cent larger: `docs/benchmarks/files.md`. Both give the same pixels.
"""

from __future__ import annotations

import io
import sys
import zlib
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from cache_dit_serving.media.values import Array


def _fpng() -> Any:
    """Return fpng; None where it has no wheel for this platform."""
    # fpng 0.1.0 has lazy_loader 0.6 look for cv2. Where it is not installed, lazy_loader describes each frame of the
    # stack: a tenth of a second below service.py's imports. It takes a module that is loaded as it is.
    stand_in = find_spec("cv2") is None
    if stand_in:
        sys.modules["cv2"] = ModuleType("cv2")
    try:
        return import_module("fpng")
    except ImportError:
        return None
    finally:
        if stand_in:
            del sys.modules["cv2"]


fpng = _fpng()

HEADER_BYTES = 8 + 25
"""Length of the signature and the chunk IHDR, which every PNG begins with."""
FASTEST = 1
"""Pillow's `compress_level`: several times faster than its default, and a few per cent larger."""


def encoder() -> str:
    """Return the name and version of the encoder in use."""
    name = "Pillow" if fpng is None else "fpng"
    return f"{name} {version(name)}"


def encode_png(pixels: Array, texts: Mapping[str, str]) -> bytes:
    """Encode an image.

    Args:
        pixels: (height, width, 3) bytes.
        texts: text chunks by keyword, in front of the pixels.
    """
    if fpng is None:
        return encode_by_pillow(pixels, texts)
    content: bytes = fpng.from_ndarray(np.ascontiguousarray(pixels))
    chunks = b"".join(_international_text(keyword, text) for keyword, text in texts.items())
    return content[:HEADER_BYTES] + chunks + content[HEADER_BYTES:]


def encode_by_pillow(pixels: Array, texts: Mapping[str, str]) -> bytes:
    """Encode as :func:`encode_png`, by Pillow."""
    info = PngInfo()
    for keyword, text in texts.items():
        info.add_itxt(keyword, text)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", pnginfo=info, compress_level=FASTEST)
    return buffer.getvalue()


def _international_text(keyword: str, text: str) -> bytes:
    """Return a chunk iTXt, uncompressed and without a language: https://www.w3.org/TR/png-3/#11iTXt."""
    data = b"iTXt" + keyword.encode("latin-1") + b"\0\0\0\0\0" + text.encode()
    return (len(data) - 4).to_bytes(4) + data + zlib.crc32(data).to_bytes(4)
