"""The request that drew a picture, as this server writes it into its PNG files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from PIL import Image

LONGEST_TEXT = 2**16
"""Characters of a record that is read."""


@dataclass(frozen=True)
class Origin:
    """Seed and size that drew a picture."""

    seed: int
    width: int
    height: int


def origin_of(image: Image.Image) -> Origin | None:
    """The record in a picture's text chunk `parameters`; None: it has none of this server's."""
    text = image.info.get("parameters")
    if not isinstance(text, str) or len(text) > LONGEST_TEXT or not text.startswith("{"):
        return None
    try:
        return origin_from(json.loads(text))
    except (ValueError, RecursionError):
        return None


def origin_from(value: Any) -> Origin | None:
    """An origin out of JSON that a stranger may have written."""
    match value:
        case {"seed": int(seed), "width": int(width), "height": int(height)}:
            return Origin(seed, width, height)
        case _:
            return None
