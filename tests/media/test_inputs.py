"""Pictures that requests bring: what is read, and how."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from cache_dit_serving.config.settings import InputSettings
from cache_dit_serving.errors import InvalidRequest
from cache_dit_serving.media.inputs import ImageReader
from tests.support.images import apple, base64_of, data_uri, file_of, noise, png_that_claims

SETTINGS = InputSettings(max_bytes=200_000, max_pixels=100_000)


HEADS = (
    "",
    " data:image/png;base64,",
    "data:image/jpg;base64,",
    "data:image/jpeg;base64,",
    "data:application/octet-stream;base64,",
    "data:video/mp4;base64,",
    "data:;base64,",
    "DATA:IMAGE/PNG;BASE64,",
    "data:image/png;name=a%20b.png;charset=utf-8;base64,",
)
"""Ways to begin; the type that a client states is not to be trusted."""


def read(text: str) -> Image.Image:
    reader = ImageReader(SETTINGS)
    return reader.image(reader.from_text(text.encode(), "image_urls.0"), "image_urls.0").image


def same(a: Image.Image, b: Image.Image) -> bool:
    return np.array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("image_format", ["PNG", "WEBP"])
def test_a_lossless_file_comes_through_as_it_is(image_format: str) -> None:
    content = file_of(apple(), image_format, lossless=True)
    assert same(read(data_uri(content, f"image/{image_format.lower()}")), apple())
    assert same(read(base64_of(content)), apple())


def test_base64_is_read_as_clients_write_it() -> None:
    content = next(made for n in range(9) if (made := file_of(noise(8 + n, 9))) and base64_of(made).endswith("="))
    text, image = base64_of(content), Image.open(io.BytesIO(content))
    assert set(text) >= set("+/=")
    broken = "\r\n".join(text[index : index + 76] for index in range(0, len(text), 76))
    for sent in (text, text.rstrip("="), broken, broken + "\n", text.replace("+", "-").replace("/", "_").rstrip("=")):
        for head in HEADS:
            assert same(read(head + sent), image), head


def test_a_file_at_the_limit_may_come_in_lines() -> None:
    content = file_of(noise(200, 200))
    text = base64_of(content + bytes(SETTINGS.max_bytes - len(content)))
    lines = "\r\n".join(text[index : index + 76] for index in range(0, len(text), 76))
    assert read(lines).size == (200, 200)


def test_a_photograph_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera on its side
    sideways = apple().transpose(Image.Transpose.ROTATE_90)
    assert same(read(data_uri(file_of(sideways, exif=exif))), apple())


def test_what_is_transparent_lies_on_white() -> None:
    image = apple().convert("RGBA")
    image.putalpha(Image.new("L", image.size, 0))
    assert set(np.asarray(read(data_uri(file_of(image)))).ravel()) == {255}
    palette = apple().quantize(8)
    assert read(data_uri(file_of(palette, transparency=palette.getpixel((0, 0))))).getpixel((0, 0)) == (255,) * 3


def test_sixteen_bits_of_grey_keep_their_range() -> None:
    ramp = Image.fromarray(np.linspace(0, 65535, 4096).astype(np.uint16).reshape(64, 64))
    pixels = np.asarray(read(data_uri(file_of(ramp))))
    assert (pixels.min(), pixels.max()) == (0, 255)
    assert 120 < pixels.mean() < 135


def test_printers_colours_become_those_of_a_screen() -> None:
    red = Image.new("CMYK", (32, 32), (0, 255, 255, 0))
    pixel = read(data_uri(file_of(red, "JPEG"), "image/jpeg")).getpixel((16, 16))
    assert isinstance(pixel, tuple)
    assert pixel[0] > 200
    assert pixel[1] < 60


def test_a_mask_is_one_channel() -> None:
    reader = ImageReader(SETTINGS)
    mask = reader.mask(file_of(Image.new("RGB", (8, 8), "white")), "mask_url").image
    assert (mask.mode, mask.getpixel((0, 0))) == ("L", 255)


def strokes(colour: str, alpha: int) -> bytes:
    """A canvas that is transparent on its left and has one colour on its right."""
    image = Image.new("RGBA", (8, 8), colour)
    image.putalpha(Image.fromarray(np.repeat([[0] * 4 + [alpha] * 4], 8, axis=0).astype(np.uint8)))
    return file_of(image)


@pytest.mark.parametrize(
    ("content", "drawn", "by_openai"),
    [
        (strokes("white", 255), [0, 255], [255, 0]),
        (strokes("black", 255), [0, 0], [255, 0]),
        (strokes("white", 128), [0, 128], [255, 127]),
        (file_of(Image.new("RGBA", (8, 8), "white")), [255, 255], [255, 255]),
        (file_of(Image.new("LA", (8, 8), (255, 0))), [0, 0], [255, 255]),
        (file_of(Image.new("P", (8, 8), 0), transparency=0), [0, 0], [255, 255]),
        (file_of(Image.new("1", (8, 8), 1)), [255, 255], [255, 255]),
    ],
)
def test_of_a_mask_the_visible_white_counts_and_by_openais_rule_the_holes(
    content: bytes, drawn: list[int], by_openai: list[int]
) -> None:
    reader = ImageReader(SETTINGS)
    masks = reader.mask(content, "mask_url").image, reader.holed_mask(content, "mask").image
    assert [[mask.getpixel((x, 3)) for x in (1, 6)] for mask in masks] == [drawn, by_openai]


JPEG = file_of(noise(96, 96), "JPEG")
ANIMATED = file_of(apple(), "WEBP", save_all=True, append_images=[noise(96, 96)])
BAD = {
    "not base64": ("what is this?", "not base64"),
    "a path": ("/etc/passwd", "not a picture|not base64"),
    "garbage": (base64_of(b"\x00garbage" * 1000), "not a picture"),
    "nothing": ("", "not a picture"),
    "svg": (data_uri(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml"), "an SVG"),
    "svg by itself": (
        base64_of(b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
        "is an SVG, which .*; send PNG, JPEG or WebP",
    ),
    "gif": (base64_of(file_of(apple(), "GIF")), "is a GIF, which this server does not read; send PNG, JPEG or WebP"),
    "html": (data_uri(b"<html>", "text/html"), "not a picture"),
    "no base64 in the uri": ("data:image/png,abc", "without base64"),
    "a broken uri": ("data:" + "x" * 300, "not a data URI"),
    "a truncated jpeg": (base64_of(JPEG[: len(JPEG) // 2]), "broken"),
    "a truncated png": (base64_of(file_of(noise(64, 64))[:6000]), "broken"),
    "huge by its header": (base64_of(png_that_claims(30_000, 30_000)), "pixels"),
    "large by its header": (base64_of(png_that_claims(1000, 101)), "1,000 x 101 pixels.*100,000 together"),
    "zero pixels": (base64_of(png_that_claims(0, 10)), "not a picture|broken"),
    "animated": (base64_of(ANIMATED), "animated"),
    "many bytes": (base64_of(file_of(noise(300, 300))), "more than 200,000 bytes"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("case", BAD)
def test_a_bad_picture_is_refused_by_field_with_the_reason(case: str) -> None:
    text, reason = BAD[case]
    with pytest.raises(InvalidRequest, match=f"(?s)image_urls.0.*({reason})") as refusal:
        read(text)
    assert refusal.value.param == "image_urls.0"


def test_the_pixels_of_all_pictures_count_together() -> None:
    reader = ImageReader(SETTINGS)
    content = file_of(apple(200, 200))
    reader.image(content, "image_urls.0")
    reader.image(content, "image_urls.1")
    with pytest.raises(InvalidRequest, match=r"image_urls\.2 has 200 x 200 pixels"):
        reader.image(content, "image_urls.2")


def test_a_picture_is_named_by_its_file() -> None:
    reader = ImageReader(SETTINGS)
    one, other = (reader.image(file_of(image), "image_urls.0") for image in (apple(), noise(8, 8)))
    assert one.digest != other.digest
    assert Image.open(io.BytesIO(file_of(apple()))).size == one.size
