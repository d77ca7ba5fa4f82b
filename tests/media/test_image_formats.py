"""Files as cameras and phones write them: what is read, and the refusal of the rest by its name."""

from __future__ import annotations

import importlib.util
import io

import numpy as np
import pytest
from PIL import Image, ImageOps, features

from cache_dit_serving.config.settings import InputSettings
from cache_dit_serving.errors import InvalidRequest
from cache_dit_serving.measure.distances.pictures import psnr
from cache_dit_serving.media import image_formats
from cache_dit_serving.media.inputs import ImageReader
from tests.support import heic
from tests.support.hostile_files import box
from tests.support.images import apple, file_of, noise


def read(content: bytes, **settings: int) -> Image.Image:
    return ImageReader(InputSettings(**settings)).image(content, "image_urls.0").image


def refused(content: bytes, **settings: int) -> str:
    with pytest.raises(InvalidRequest) as refusal:
        read(content, **settings)
    assert refusal.value.param == "image_urls.0"
    return refusal.value.message


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_first_picture_of_a_phones_jpeg_is_used_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = file_of(apple(96, 64), "MPO", save_all=True, append_images=[noise(48, 32)], exif=exif)
    with Image.open(io.BytesIO(content)) as stored:
        assert (stored.format, stored.n_frames) == ("MPO", 2)  # type: ignore[attr-defined]
        expected = ImageOps.exif_transpose(stored)
    assert np.array_equal(np.asarray(read(content)), np.asarray(expected))


def test_an_avif_is_read_as_by_pil() -> None:
    content = file_of(apple(96, 64), "AVIF", quality=90)
    with Image.open(io.BytesIO(content)) as expected:
        assert np.array_equal(np.asarray(read(content)), np.asarray(expected.convert("RGB")))
    assert "96 x 64 pixels" in refused(content, max_pixels=5_000)
    animation = file_of(apple(96, 64), "AVIF", save_all=True, append_images=[noise(96, 64)])
    assert "is animated" in refused(animation)
    assert "is broken" in refused(content[: len(content) // 2]) or "not a picture" in refused(content[:40])


@pytest.mark.skipif(
    not any(map(importlib.util.find_spec, image_formats.HEIF_PACKAGES)), reason="no package reads HEIC here"
)
def test_a_heic_is_read_where_a_package_reads_it() -> None:
    image = read(heic.APPLE)
    assert image.size == (96, 64)
    assert psnr(np.asarray(image) / 255, np.asarray(apple(96, 64)) / 255) > 20
    assert "96 x 64 pixels" in refused(heic.APPLE, max_pixels=5_000)
    assert "is broken" in refused(heic.APPLE[:-100]) or "not a picture" in refused(heic.APPLE[:-100])


def test_a_heic_is_refused_by_its_name_where_nothing_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_formats, "_reads_heif", lambda: False)
    message = "image_urls.0 is a HEIC (HEIF), which this server does not read; send PNG, JPEG or WebP"
    for brand in (b"heic", b"heix", b"mif1"):
        assert refused(heic.APPLE.replace(b"heic", brand, 1)) == message


def test_an_avif_is_refused_by_its_name_where_pil_was_built_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "check", lambda name: False)
    assert "is an AVIF, which this server does not read" in refused(file_of(apple(), "AVIF"))


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (file_of(apple(), "GIF"), "a GIF"),
        (file_of(apple(), "BMP"), "a BMP"),
        (file_of(apple(), "TIFF"), "a TIFF"),
        (file_of(apple(), "JPEG2000"), "a JPEG 2000"),
        (b"%PDF-1.7", "a PDF"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL"),
        (b"\0\0\0\x18ftypmp42" + bytes(16), "a video"),
        (b"\x1a\x45\xdf\xa3" + bytes(16), "a WebM video"),
    ],
)
def test_what_is_not_read_is_refused_by_its_name(content: bytes, name: str) -> None:
    assert f"is {name}" in refused(content)
    assert refused(content).endswith("; send PNG, JPEG or WebP")


def sized(width: int, height: int) -> bytes:
    return box(b"ispe", bytes(4), width.to_bytes(4, "big"), height.to_bytes(4, "big"))


def still(brand: bytes, *parts: bytes) -> bytes:
    """A file of properties and tables, without a picture."""
    return box(b"ftyp", brand, bytes(4), b"mif1", brand) + box(b"meta", bytes(4), *parts)


@pytest.mark.parametrize("brand", [b"avif", b"heic"])
@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ((box(b"iprp", box(b"ipco", sized(64, 64), sized(30_000, 30_000))),), "30,000 x 30,000 pixels"),
        ((box(b"iprp", box(b"ipco", sized(64, 64) * 5_000)),), "more than 4,000 boxes"),
        ((box(b"iinf", bytes(4), (60_000).to_bytes(2, "big"), bytes(8)),), "more than 1,000 items"),
        ((box(b"iinf", bytes(4), (900).to_bytes(2, "big"), bytes(8)),), "claims more entries"),
        ((box(b"iloc", b"\2\0\0\0\x44\0", (2**31).to_bytes(4, "big")),), "more than 1,000 items"),
        ((box(b"meta", bytes(4), box(b"meta", bytes(4), box(b"meta", bytes(4), box(b"meta", bytes(4), box(
            b"meta", bytes(4), box(b"meta", bytes(4), box(b"meta", bytes(4))))))),),), "levels of boxes"),
    ],
)  # fmt: skip
def test_what_claims_too_much_reaches_no_decoder(
    brand: bytes, parts: tuple[bytes, ...], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "open", None)
    assert words in refused(still(brand, *parts))
