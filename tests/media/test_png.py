"""PNG files by both encoders: the same pixels, and text that Pillow reads."""

from __future__ import annotations

import io
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cache_dit_serving.media import png

SIZES = [(1, 1), (1, 300), (300, 1), (7, 5), (257, 129), (512, 768)]
TEXTS = {"parameters": '{"prompt": "eine Katze, läuft 🐈"}', "warnings": "[]"}

LOOKS_AT_THE_STACK = """
import importlib, inspect, sys
looks = []
inspect.stack, stack = lambda: looks.append(1) or stack(), inspect.stack
importlib.import_module(sys.argv[1])
print(len(looks), "cv2" in sys.modules)
"""


def opened(content: bytes) -> Any:
    return Image.open(io.BytesIO(content))


def chunks(content: bytes) -> list[bytes]:
    """The kinds of a file's chunks, in order."""
    kinds, place = [], 8
    while place < len(content):
        length = int.from_bytes(content[place : place + 4])
        kinds.append(content[place + 4 : place + 8])
        place += 12 + length
    return kinds


@pytest.mark.parametrize("encode", [png.encode_png, png.encode_by_pillow])
@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("kind", ["noise", "flat", "ramp"])
def test_a_file_holds_the_pixels_and_the_texts(encode: Any, height: int, width: int, kind: str) -> None:
    pixels = {
        "noise": np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8),
        "flat": np.full((height, width, 3), (9, 200, 30), dtype=np.uint8),
        "ramp": (np.arange(height * width * 3).reshape(height, width, 3) % 256).astype(np.uint8),
    }[kind]
    content = encode(pixels, TEXTS)
    picture = opened(content)
    # Before the pixels are read: a client that looks for the request need not decode them.
    assert picture.info["parameters"] == TEXTS["parameters"]
    assert dict(picture.text) == TEXTS
    assert (picture.mode, picture.size) == ("RGB", (width, height))
    assert np.array_equal(np.asarray(picture), pixels)
    assert encode(pixels, TEXTS) == content


def test_texts_stand_in_front_of_the_pixels() -> None:
    kinds = chunks(png.encode_png(np.zeros((4, 4, 3), dtype=np.uint8), TEXTS))
    assert kinds[0] == b"IHDR"
    assert kinds.index(b"iTXt") < kinds.index(b"IDAT")
    assert kinds[-1] == b"IEND"


def test_pixels_that_are_not_contiguous_are_encoded() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 8, 3), dtype=np.uint8)[::2, ::-1]
    pixels.flags.writeable = False
    assert np.array_equal(np.asarray(opened(png.encode_png(pixels, {}))), pixels)


def test_pillow_takes_over_where_there_is_no_fpng(monkeypatch: pytest.MonkeyPatch) -> None:
    assert png.encoder().startswith("fpng ")
    monkeypatch.setattr(png, "fpng", None)
    assert png.encoder().startswith("Pillow ")
    pixels = np.full((4, 4, 3), 7, dtype=np.uint8)
    content = png.encode_png(pixels, TEXTS)
    assert b"fdEC" not in chunks(content)
    assert content == png.encode_by_pillow(pixels, TEXTS)


def looks_at_the_stack(module: str) -> list[str]:
    """The number of times that an import in a fresh process looks at its stack, and True where it leaves a cv2."""
    command = [sys.executable, "-c", LOOKS_AT_THE_STACK, module]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=180).stdout.split()


@pytest.mark.skipif(find_spec("cv2") is not None, reason="lazy_loader finds cv2")
def test_the_import_of_fpng_does_not_describe_the_stack() -> None:
    assert looks_at_the_stack("cache_dit_serving.media.png") == ["0", "False"]
    assert looks_at_the_stack("fpng") == ["1", "False"], "fpng no longer needs the stand-in of media/png.py"
