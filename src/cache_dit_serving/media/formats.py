"""The formats of pictures, said once."""

from __future__ import annotations

from typing import Literal

ImageFormat = Literal["png", "jpeg", "webp"]
DEFAULT_FORMAT: ImageFormat = "png"
DEFAULT_QUALITY = 90
"""Of the lossy formats, 1 to 100."""
MEDIA_TYPES: dict[str, str] = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
"""By file extension, which is the format's name."""
