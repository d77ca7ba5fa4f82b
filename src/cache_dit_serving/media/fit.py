"""Fitting of an input image to the output size when their aspect ratios differ."""

from __future__ import annotations

from typing import Literal

from PIL import Image, ImageOps

Fit = Literal["crop", "pad", "stretch"]
DEFAULT_FIT: Fit = "crop"
MASK_FIELD = "mask_url"


def fitted(image: Image.Image, size: tuple[int, int], fit: Fit, *, bars: str = "black") -> Image.Image:
    """Resize an image with the Lanczos filter.

    `crop` fills the size and cuts equal parts from both ends. `pad` keeps the whole image between bars. `stretch`
    ignores the aspect ratio. All three give the same pixels if the aspect ratios are equal.

    Args:
        bars: colour of the bars.
    """
    match fit:
        case "crop":
            return ImageOps.fit(image, size, Image.Resampling.LANCZOS)
        case "pad":
            return ImageOps.pad(image, size, Image.Resampling.LANCZOS, color=bars)
        case "stretch":
            return image.resize(size, Image.Resampling.LANCZOS)


def bars_of(field: str) -> str:
    """Return the bar colour for the image of a field: white for a mask, so that the bars are redrawn, else black."""
    return "white" if field == MASK_FIELD else "black"


def keeps_shape(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Return whether resizing from one size to the other cuts, pads or stretches less than a pixel."""
    (width, height), (other_width, other_height) = size, other
    scale = max(other_width / width, other_height / height)
    return abs(width * scale - other_width) < 1 and abs(height * scale - other_height) < 1
