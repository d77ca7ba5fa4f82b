"""Reading an uploaded picture of 4 megapixels, beside PIL alone.

Alone: `python -m benchmarks.pictures`.
"""

from __future__ import annotations

import base64
import io
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from cache_dit_serving.config.settings import InputSettings
from cache_dit_serving.media.image_formats import FORMATS
from cache_dit_serving.media.inputs import ImageReader

SIDE = 2048
RUNS = 15


@dataclass(frozen=True)
class Read:
    """How long one format takes: medians."""

    file_mb: float
    alone_ms: float
    """PIL from the file's bytes to pixels."""
    served_ms: float
    """From a data URI to pixels: base64, checks, decoding, SHA-256."""


def photograph() -> Image.Image:
    """Smooth shapes with the grain of a photograph."""
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    wave = 0.5 + 0.4 * np.sin(x / 90) * np.cos(y / 70)
    grain = np.random.default_rng(0).normal(0, 0.02, (SIDE, SIDE, 3))
    pixels = np.stack([wave, 1 - wave, x / SIDE], axis=-1) + grain
    return Image.fromarray((np.clip(pixels, 0, 1) * 255).astype(np.uint8))


def measure() -> dict[str, Read]:
    """Both ways in turn, for each format that is read."""
    image = photograph()
    found = {}
    for name in FORMATS:
        buffer = io.BytesIO()
        image.save(buffer, name, quality=90)
        content = buffer.getvalue()
        uri = f"data:image/{name.lower()};base64,{base64.b64encode(content).decode()}"

        def alone(content: bytes = content) -> None:
            Image.open(io.BytesIO(content)).convert("RGB").load()

        def served(uri: str = uri) -> None:
            reader = ImageReader(InputSettings())
            reader.image(reader.from_text(uri.encode(), "image_urls.0"), "image_urls.0")

        pairs = [(_ms(alone), _ms(served)) for _ in range(RUNS)]
        alone_ms, served_ms = (statistics.median(column) for column in zip(*pairs, strict=True))
        found[name] = Read(len(content) / 1e6, alone_ms, served_ms)
    return found


def _ms(work: Callable[[], None]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1000


def rows(measured: dict[str, Read]) -> str:
    return "\n".join(
        f"| {name} | {one.file_mb:.1f} | {one.alone_ms:.0f} | {one.served_ms:.0f} |" for name, one in measured.items()
    )


if __name__ == "__main__":
    print(rows(measure()))
