"""Time, size and likeness of each way to write an output's file: `python -m benchmarks.files`, two quiet minutes.

Writes docs/benchmarks/files.md.
"""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import islice
from typing import Any, NamedTuple

import av
import numpy as np
from PIL import Image

from benchmarks.machine import machine
from benchmarks.progress import say
from cache_dit_serving.config.catalog import BUNDLE_ROOT
from cache_dit_serving.measure.distances.pictures import psnr, ssim
from cache_dit_serving.media import images, png, video, video_encoders
from cache_dit_serving.media.values import Array, VideoOutput

PAGE = BUNDLE_ROOT / "docs" / "benchmarks" / "files.md"
SOURCE = BUNDLE_ROOT / "docs" / "images" / "pictures.png"
ROUNDS = 7
GRAIN = 3.0
"""Standard deviation of the noise laid over the enlarged source, of 255: it stands for a model's fine texture."""
CLIPS = {"480p": (832, 480), "720p": (1280, 720)}
FRAMES = 81
PRESETS = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium")
THREADS = (1, 2, 4, 8)

TEXT = """\
# Writing files

Written by `python -m benchmarks.files` ({date}). One picture of 1024 x 1024 pixels:
[pictures.png](../images/pictures.png) enlarged, with fine noise. Medians of {rounds}, taken in turn, without the
conversion from floats. SSIM against the picture.

{machine}

| format | written by | CPU, ms | kB | SSIM |
|---|---|---|---|---|
{pictures}

In use: PNG by {png}, WebP with method {webp}.

A clip of {frames} frames of that picture, which moves, at CRF 18. SSIM and PSNR of the middle frame. CPU is that of all
threads.

| size | preset | threads | s | CPU, s | kB | SSIM | PSNR, dB |
|---|---|---|---|---|---|---|---|
{clips}

In use: {preset} with {threads} threads on any machine. x264 would take its number from the machine's cores, and another
number of threads is another file.
"""


class Row(NamedTuple):
    """One way to write a file."""

    format: str
    by: str
    write: Callable[[], bytes]


def picture(width: int, height: int) -> Array:
    """The source at a size, with grain: (height, width, 3) bytes."""
    enlarged = Image.open(SOURCE).convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    grain = np.random.default_rng(0).normal(0, GRAIN, (height, width, 3))
    return (np.asarray(enlarged) + grain).round().clip(0, 255).astype(np.uint8)


def saved(pixels: Array, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def rows(pixels: Array) -> list[Row]:
    return [
        Row("PNG", "Pillow, level 6", lambda: saved(pixels, "PNG")),
        Row("PNG", "Pillow, level 1", lambda: png.encode_by_pillow(pixels, {})),
        Row("PNG", png.encoder(), lambda: png.encode_png(pixels, {})),
        *(Row("WebP", f"Pillow, quality 90, method {method}", _webp(pixels, method)) for method in (0, 1, 2, 3, 4)),
        Row("JPEG", "Pillow, quality 90", lambda: saved(pixels, "JPEG", quality=90)),
    ]


def _webp(pixels: Array, method: int) -> Callable[[], bytes]:
    return lambda: saved(pixels, "WEBP", quality=90, method=method)


def pictures_table() -> str:
    pixels = picture(1024, 1024)
    seconds: dict[str, list[float]] = {}
    files: dict[str, bytes] = {}
    say(f"{ROUNDS} rounds of each image format")
    for _ in range(ROUNDS):
        for row in rows(pixels):
            begun = time.thread_time()
            files[row.by] = row.write()
            seconds.setdefault(row.by, []).append(time.thread_time() - begun)
    lines = []
    for row in rows(pixels):
        back = np.asarray(Image.open(io.BytesIO(files[row.by])).convert("RGB"), dtype=np.float32) / 255
        likeness = ssim(pixels.astype(np.float32) / 255, back)
        took = statistics.median(seconds[row.by]) * 1000
        lines.append(f"| {row.format} | {row.by} | {took:.1f} | {len(files[row.by]) / 1000:,.0f} | {likeness:.4f} |")
    return "\n".join(lines)


def clips_table() -> str:
    lines = []
    for name, (width, height) in CLIPS.items():
        say(f"a clip of {name}")
        still = picture(width + FRAMES, height)
        frames = np.stack([still[:, index : index + width] for index in range(FRAMES)])
        ways = [(preset, video_encoders.THREADS) for preset in PRESETS] + [
            (video_encoders.PRESET, threads) for threads in THREADS
        ]
        for preset, threads in dict.fromkeys(ways):
            cpu, began = time.process_time(), time.perf_counter()
            content = video.encode_video(
                VideoOutput(frames, 16.0), "mp4", {}, encoder=video_encoders.x264(preset, threads)
            )
            took, used = time.perf_counter() - began, time.process_time() - cpu
            container: Any = av.open(io.BytesIO(content))
            back = next(islice(container.decode(video=0), FRAMES // 2, None)).to_ndarray(format="rgb24")
            pair = (frames[FRAMES // 2].astype(np.float32) / 255, back.astype(np.float32) / 255)
            lines.append(
                f"| {name} | {preset} | {threads} | {took:.2f} | {used:.2f} | {len(content) / 1000:,.0f} "
                f"| {ssim(*pair):.4f} | {psnr(*pair):.1f} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Measure, and write the page."""
    text = TEXT.format(
        date=datetime.now(UTC).date(),
        rounds=ROUNDS,
        machine=machine(),
        pictures=pictures_table(),
        png=png.encoder(),
        webp=images.WEBP_METHOD,
        frames=FRAMES,
        clips=clips_table(),
        preset=video_encoders.PRESET,
        threads=video_encoders.THREADS,
    )
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
