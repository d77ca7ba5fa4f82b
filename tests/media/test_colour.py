"""Colour profiles: the pixels that come out are those of littleCMS, in sRGB."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from cache_dit_serving.config.settings import InputSettings
from cache_dit_serving.media.inputs import ImageReader
from tests.support import profiles
from tests.support.images import apple, file_of, noise


def read(content: bytes) -> np.ndarray[Any, Any]:
    return np.asarray(ImageReader(InputSettings()).image(content, "image_urls.0").image)


def by_pil(content: bytes, mode: str) -> Image.Image:
    """A file's picture in sRGB, by Pillow alone."""
    with Image.open(io.BytesIO(content)) as image:
        source = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        converted = ImageCms.profileToProfile(
            image.convert("RGBA").convert(mode) if image.mode != mode else image,
            source,
            ImageCms.createProfile("sRGB"),
            outputMode="RGB",
        )
    assert converted is not None
    return converted


SWAPPED, GREY, INKS = profiles.swapped(), profiles.linear_grey(), profiles.inks()
FILES = {
    "PNG": (file_of(noise(40, 30), icc_profile=SWAPPED), "RGB"),
    "JPEG": (file_of(apple(), "JPEG", icc_profile=SWAPPED), "RGB"),
    "WebP": (file_of(apple(), "WEBP", icc_profile=SWAPPED), "RGB"),
    "AVIF": (file_of(apple(), "AVIF", icc_profile=SWAPPED), "RGB"),
    "a phone's JPEG": (file_of(apple(), "MPO", save_all=True, append_images=[apple()], icc_profile=SWAPPED), "RGB"),
    "palette": (file_of(noise(40, 30).quantize(64), icc_profile=SWAPPED), "RGB"),
    "grey": (file_of(noise(40, 30).convert("L"), icc_profile=GREY), "L"),
    "CMYK": (file_of(noise(40, 30).convert("CMYK"), "JPEG", icc_profile=INKS), "CMYK"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_picture_with_a_profile_has_the_colours_that_it_means(case: str) -> None:
    content, mode = FILES[case]
    assert np.array_equal(read(content), np.asarray(by_pil(content, mode)))
    with Image.open(io.BytesIO(content)) as plain:
        assert np.abs(read(content).astype(int) - np.asarray(plain.convert("RGB"))).mean() > 3


def test_sixteen_bits_of_grey_have_their_profile() -> None:
    ramp = Image.fromarray(np.linspace(0, 65535, 4096).astype(np.uint16).reshape(64, 64))
    eight = Image.fromarray((np.asarray(ramp) >> 8).astype(np.uint8))
    assert np.array_equal(
        read(file_of(ramp, icc_profile=GREY)), np.asarray(by_pil(file_of(eight, icc_profile=GREY), "L"))
    )


@pytest.mark.parametrize(("mode", "profile"), [("RGBA", SWAPPED), ("LA", GREY), ("P", SWAPPED)])
def test_what_is_transparent_lies_on_the_white_of_the_screen(mode: str, profile: bytes) -> None:
    image = noise(40, 30).convert("RGBA")
    image.putalpha(noise(40, 30).convert("L"))
    if mode == "P":
        image = image.quantize(64)
    content = file_of(image.convert(mode), icc_profile=profile)
    with Image.open(io.BytesIO(content)) as stored:
        expected = by_pil(content, "L" if mode == "LA" else "RGB").convert("RGBA")
        expected.putalpha(stored.convert("RGBA").getchannel("A"))
    expected = Image.alpha_composite(Image.new("RGBA", image.size, "white"), expected)
    assert np.array_equal(read(content), np.asarray(expected.convert("RGB")))


@pytest.mark.parametrize(
    ("profile", "mode"),
    [
        (profiles.srgb(), "RGB"),
        (b"", "RGB"),
        (b"no profile", "RGB"),
        (SWAPPED[:200], "RGB"),
        (SWAPPED[:128] + b"\xff" * 500, "RGB"),
        (SWAPPED + bytes(2**22), "RGB"),
        (GREY, "RGB"),
        (INKS, "RGB"),
        (INKS, "L"),
        (SWAPPED, "CMYK"),
        (SWAPPED, "L"),  # its greys are those of sRGB
    ],
    ids=lambda value: value if isinstance(value, str) else f"{len(value)} bytes",
)
def test_srgb_and_a_profile_that_is_broken_or_of_another_kind_change_nothing(profile: bytes, mode: str) -> None:
    image = noise(40, 30).convert(mode)
    with_it, without = (file_of(image, "JPEG", quality=95, **more) for more in ({"icc_profile": profile}, {}))
    assert np.array_equal(read(with_it), read(without))


def test_a_masks_values_are_no_colours() -> None:
    reader, image = ImageReader(InputSettings()), noise(40, 30).convert("L")
    mask = reader.mask(file_of(image, icc_profile=GREY), "mask_url").image
    assert np.array_equal(np.asarray(mask), np.asarray(image))
