"""Seed and size of a generated image, read from the record in its PNG file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from PIL import Image

LONGEST_TEXT = 2**16
"""Maximum length of a record, characters; a longer one is ignored."""


@dataclass(frozen=True)
class Origin:
    """Seed and size (pixels) of the request that drew an image."""

    seed: int
    width: int
    height: int


def origin_of(image: Image.Image) -> Origin | None:
    """Read the text chunk `parameters` of an image; None if this server did not write it."""
    text = image.info.get("parameters")
    if not isinstance(text, str) or len(text) > LONGEST_TEXT or not text.startswith("{"):
        return None
    try:
        return origin_from(json.loads(text))
    except (ValueError, RecursionError):
        return None


def origin_from(value: Any) -> Origin | None:
    """Return the origin in untrusted JSON; None if it holds none."""
    match value:
        case {"seed": int(seed), "width": int(width), "height": int(height)}:
            return Origin(seed, width, height)
        case _:
            return None
