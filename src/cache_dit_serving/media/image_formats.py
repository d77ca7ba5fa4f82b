"""Image formats: detection by a file's first bytes, and the list of formats that this server reads."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable

from PIL import features

from cache_dit_serving.errors import InvalidRequest
from cache_dit_serving.media.structure.heif import check_heif
from cache_dit_serving.media.structure.jpeg import check_jpeg
from cache_dit_serving.media.structure.png import check_png
from cache_dit_serving.media.structure.webp import check_webp

FORMATS = ("PNG", "JPEG", "WEBP")
"""PIL's names of the formats that are always read. Few, because each decoder adds attack surface."""
CHECKS: dict[str, Callable[[bytes], tuple[int, int] | None]] = {
    "PNG": check_png,
    "JPEG": check_jpeg,
    "WEBP": check_webp,
    "AVIF": check_heif,
    "HEIF": check_heif,
}
"""Structure check of each format, which runs before its decoder."""
READ = "PNG, JPEG or WebP"
"""Names of the formats that are always read, as errors list them."""
HEIF_PACKAGES = ("pi_heif", "pillow_heif")
"""Optional packages that read HEIC; either one is enough."""
HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
MOST_BRANDS = 32
NAMED = {
    b"GIF8": "a GIF",
    b"BM": "a BMP",
    b"II*\0": "a TIFF or a camera's raw file",
    b"MM\0*": "a TIFF or a camera's raw file",
    b"\xff\x0a": "a JPEG XL",
    b"\0\0\0\x0cJXL ": "a JPEG XL",
    b"\0\0\0\x0cjP  ": "a JPEG 2000",
    b"\xff\x4f\xff\x51": "a JPEG 2000",
    b"8BPS": "a Photoshop file",
    b"%PDF": "a PDF",
    b"<svg": "an SVG",
    b"\x1a\x45\xdf\xa3": "a WebM video",
}
"""Names of formats that are not read, by their first bytes; for errors."""


def format_of(content: bytes) -> str | None:
    """Return PIL's name of an image's format, detected by its first bytes; None for any other file."""
    if content.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if content.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "WEBP"
    brands = _brands(content)
    if brands & {b"avif", b"avis"}:
        return "AVIF"
    return "HEIF" if brands & HEIF_BRANDS else None


def openable(content: bytes, param: str) -> tuple[str, ...]:
    """Return PIL's names of the formats to try when opening a file.

    Raises:
        InvalidRequest: the server does not read this format; the message names it.
    """
    name = format_of(content)
    if name == "AVIF" and features.check("avif"):
        return ("AVIF",)
    if name == "HEIF" and _reads_heif():
        return ("HEIF",)
    if name in FORMATS:
        return FORMATS
    said = {"AVIF": "an AVIF", "HEIF": "a HEIC (HEIF)"}.get(name or "") or _named(content)
    what = f"is {said}, which this server does not read" if said else "is not a picture this server reads"
    raise InvalidRequest(f"{param} {what}; send {READ}", param=param)


def _named(content: bytes) -> str | None:
    if _brands(content):
        return "a video (MP4)"
    return next((words for begins, words in NAMED.items() if content.startswith(begins)), None)


def _brands(content: bytes) -> set[bytes]:
    """Return the major and compatible brands of an ISO base media file; empty for any other file."""
    if content[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(content[:4], "big"), 16 + 4 * MOST_BRANDS)
    return {content[8:12], *(content[at : at + 4] for at in range(16, end, 4))}


@functools.cache
def _reads_heif() -> bool:
    for package in HEIF_PACKAGES:
        try:
            module = importlib.import_module(package)
        except ImportError:
            continue
        module.register_heif_opener(thumbnails=False)
        return True
    return False
