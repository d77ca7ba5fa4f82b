"""Conversion of images to the pixels that pipelines expect: sRGB, eight bits per channel, opaque."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageCms

MOST_PROFILE_BYTES = 2**22
"""Maximum size of a colour profile; a larger one is ignored. A printer's has up to 3 MB, a screen's a few kB."""
PROBE_STEPS = 9
"""Levels per channel of the probe colours that compare a profile with sRGB."""
SPACES = {"RGB ": ("RGB", "L"), "GRAY": ("L",), "CMYK": ("CMYK",), "Lab ": ("LAB",)}
"""Image modes that a profile of each colour space can describe, by ICC colour space signature."""


def in_colour(image: Image.Image) -> Image.Image:
    """Return the image in RGB, converted by its colour profile, with transparent areas on white."""
    return _opaque(in_srgb(image), "white")


def as_mask(image: Image.Image) -> Image.Image:
    """Return the image in mode L: white where it is white and opaque.

    The colour profile is ignored, because a mask's values are not colours.
    """
    return _opaque(_in_eight_bits(image), "black").convert("L")


def holes(image: Image.Image) -> Image.Image | None:
    """Return a mask (mode L) that is white where the image is transparent; None for an opaque image."""
    if not image.has_transparency_data:
        return None
    found = image.convert("RGBA").getchannel("A").point([255 - value for value in range(256)])
    return found if found.getbbox() else None


def in_srgb(image: Image.Image) -> Image.Image:
    """Return the image in eight bits per channel, converted to sRGB. Alpha is kept.

    The colours are left unchanged if the profile is missing, broken, too large, already sRGB or of another mode.
    """
    profile = image.info.get("icc_profile")
    image = _in_eight_bits(image)
    if not isinstance(profile, bytes) or not 0 < len(profile) <= MOST_PROFILE_BYTES:
        return image
    alpha: Image.Image | None = None
    grey = image.mode in ("L", "LA", "1")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
    plain = image if image.mode in ("CMYK", "LAB") else image.convert("L" if grey else "RGB")
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if plain.mode not in SPACES.get(source.profile.xcolor_space, ()):
            return image
        if source.profile.xcolor_space == "RGB ":
            plain = plain.convert("RGB")
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), plain.mode, "RGB")
        if plain.mode == "RGB" and _is_srgb(transform):
            return image
        converted = ImageCms.applyTransform(plain, transform)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):  # the profile is broken or of another kind
        return image
    assert converted is not None
    if alpha is not None:
        converted.putalpha(alpha)
    return converted


def _is_srgb(transform: ImageCms.ImageCmsTransform) -> bool:
    """Return whether a transform changes no channel by more than 1: the profile is one of the many versions of sRGB."""
    levels = np.linspace(0, 255, PROBE_STEPS).round().astype(np.uint8)
    colours = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
    converted = ImageCms.applyTransform(Image.fromarray(colours), transform)
    return int(np.abs(np.asarray(converted).astype(int) - colours).max()) <= 1


def _in_eight_bits(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey: PIL's own conversion would video it at 255
        return Image.fromarray((np.asarray(image, dtype=np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    return image


def _opaque(image: Image.Image, ground: str) -> Image.Image:
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, ground), image)
    return image.convert("RGB")
