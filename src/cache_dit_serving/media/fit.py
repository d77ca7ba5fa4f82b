"""A picture at the size that is drawn, where the two have different shapes."""

from __future__ import annotations

from typing import Literal

from PIL import Image, ImageOps

Fit = Literal["crop", "pad", "stretch"]
DEFAULT_FIT: Fit = "crop"
MASK_FIELD = "mask_url"


def fitted(image: Image.Image, size: tuple[int, int], fit: Fit, *, bars: str = "black") -> Image.Image:
    """A picture at another size, by Lanczos' filter.

    crop: it covers the size, and what juts out is cut off on both sides alike. pad: all of it is there, between bars.
    stretch: its shape is lost. For a picture of the shape that is wanted they are the same, to the bit.

    Args:
        bars: colour of what pads it.
    """
    match fit:
        case "crop":
            return ImageOps.fit(image, size, Image.Resampling.LANCZOS)
        case "pad":
            return ImageOps.pad(image, size, Image.Resampling.LANCZOS, color=bars)
        case "stretch":
            return image.resize(size, Image.Resampling.LANCZOS)


def bars_of(field: str) -> str:
    """The colour that pads the picture of a field: black, and of a mask white, so that the bars are drawn anew."""
    return "white" if field == MASK_FIELD else "black"


def keeps_shape(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether a picture of one size can be resized to another with less than a pixel cut, added or stretched."""
    (width, height), (other_width, other_height) = size, other
    scale = max(other_width / width, other_height / height)
    return abs(width * scale - other_width) < 1 and abs(height * scale - other_height) < 1
