"""Files that claim too much are refused before they are decoded, real ones are not."""

from __future__ import annotations

import contextlib
import io
import struct
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cache_dit_serving.config.settings import InputSettings
from cache_dit_serving.errors import InvalidRequest
from cache_dit_serving.media.inputs import ImageReader
from cache_dit_serving.media.structure.excessive import Excessive
from cache_dit_serving.media.structure.heif import check_heif
from cache_dit_serving.media.structure.jpeg import check_jpeg
from cache_dit_serving.media.structure.mp4 import check_mp4
from cache_dit_serving.media.structure.png import check_png
from cache_dit_serving.media.structure.webm import check_webm
from cache_dit_serving.media.structure.webp import check_webp
from tests.support import hostile_files
from tests.support.images import apple, file_of, noise

SECONDS = 1.0
"""Of this thread, to refuse a file."""


def refusal(content: bytes, *, video: bool = False) -> InvalidRequest:
    reader, began = ImageReader(InputSettings()), time.thread_time()
    with pytest.raises(InvalidRequest) as refused:
        reader.video(content, "video_url", 9) if video else reader.image(content, "image_urls.0")
    assert time.thread_time() - began < SECONDS
    return refused.value


@pytest.mark.parametrize("case", hostile_files.PICTURES)
def test_a_picture_that_claims_too_much_is_refused_by_field_at_once(case: str) -> None:
    refused = refusal(hostile_files.PICTURES[case]())
    assert refused.param == "image_urls.0"
    assert "holds" in refused.message or "pixels" in refused.message


@pytest.mark.parametrize("case", hostile_files.VIDEOS)
def test_a_video_that_claims_too_much_is_refused_by_field_at_once(case: str) -> None:
    refused = refusal(hostile_files.VIDEOS[case](), video=True)
    assert refused.param == "video_url"
    assert "broken" not in refused.message


def accepted(content: bytes) -> Image.Image:
    return ImageReader(InputSettings()).image(content, "image_urls.0").image


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("megapixels", [0.25, 4])
def test_a_photograph_with_a_profile_and_exif_is_read(image_format: str, megapixels: float) -> None:
    side = int((megapixels * 1e6) ** 0.5)
    tags = Image.Exif()
    tags[0x010F] = "Maker"
    tags.get_ifd(0x8769)[0x927C] = bytes(50_000)  # a maker note
    quickly = {"compress_level": 1, "method": 0}  # of PNG and WebP
    content = file_of(noise(side, side), image_format, icc_profile=bytes(500_000), exif=tags, quality=95, **quickly)
    assert accepted(content).size == (side, side)


def test_a_png_of_20_megabytes_in_chunks_of_8_kilobytes_is_read() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2500, 2600, 3), dtype=np.uint8)
    content = file_of(Image.fromarray(pixels), compress_level=0)
    begin, length = content.index(b"IDAT") - 4, 0
    data = bytearray()
    position = begin
    while content[position + 4 : position + 8] == b"IDAT":
        (length,) = struct.unpack_from(">I", content, position)
        data += content[position + 8 : position + 8 + length]
        position += length + 12
    chunks = [hostile_files.png_chunk(b"IDAT", bytes(data[at : at + 8192])) for at in range(0, len(data), 8192)]
    assert len(chunks) > 2_300
    assert np.array_equal(np.asarray(accepted(content[:begin] + b"".join(chunks) + content[position:])), pixels)


def test_a_progressive_jpeg_of_a_hundred_scans_is_read_where_it_is_small() -> None:
    assert accepted(hostile_files.jpeg_scans(90, side=512)).size == (512, 512)
    assert accepted(file_of(noise(3000, 3000), "JPEG", progressive=True)).size == (3000, 3000)


def test_the_first_picture_of_a_phones_jpeg_is_read() -> None:
    buffer = io.BytesIO()
    apple().save(buffer, "MPO", save_all=True, append_images=[noise(32, 32)])
    assert accepted(buffer.getvalue()).size == apple().size


def test_a_panorama_is_read() -> None:
    assert accepted(file_of(Image.new("RGB", (12_000, 500)))).size == (12_000, 500)


def test_uncompressed_sound_of_a_camera_is_no_claim() -> None:
    sound = hostile_files.mp4(1_000_000).replace(b"vide", b"soun") + bytes(1_000_000)
    check_mp4(sound)


@pytest.mark.parametrize(
    "options", [{}, {"speed": 10, "quality": 1}, {"subsampling": "4:4:4", "quality": 100}, {"tile_rows": 1}], ids=repr
)
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_the_size_of_an_avifs_data_is_found(options: dict[str, Any], mode: str) -> None:
    picture = noise(350, 129).convert(mode)
    content = file_of(picture, "AVIF", exif=Image.Exif(), xmp=b"<x:xmpmeta/>", **options)
    assert check_heif(content) == (350, 129)
    content = content.replace(struct.pack(">II", 350, 129), struct.pack(">II", 64, 64))
    assert check_heif(content) == (350, 129)
    assert content.index(b"mdat") < 1000, "the boxes come first"
    for end in (*range(0, min(1000, len(content)), 7), *range(1000, len(content), 997)):
        check_heif(content[:end])


def test_an_avif_with_an_empty_table_at_its_end_has_no_size() -> None:
    picture = hostile_files.box(b"iprp", hostile_files.box(b"ipco", hostile_files.box(b"av1C", bytes(4))))
    empty = hostile_files.box(b"iloc")
    assert check_heif(hostile_files.box(b"meta", bytes(4), picture, empty)) is None


def test_a_file_that_is_cut_anywhere_passes_or_is_refused() -> None:
    checks: dict[Callable[[bytes], object], bytes] = {
        check_mp4: hostile_files.mp4(1, 2),
        check_webm: hostile_files.webm(20),
        check_png: file_of(apple()),
        check_jpeg: hostile_files.jpeg_exif(9),
        check_webp: hostile_files.webp_chunks(3),
    }
    for check, whole in checks.items():
        for end in range(0, len(whole), 7):
            with contextlib.suppress(Excessive):
                check(whole[:end])
