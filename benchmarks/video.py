"""Encoding a clip of 49 frames of 832 x 480 px beside PyAV alone, and the event loop meanwhile.

Alone: `python -m benchmarks.video`.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import multiprocessing.connection
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from cache_dit_serving.media.values import VideoOutput
from cache_dit_serving.media.video import encode_video
from cache_dit_serving.media.video_encoders import X264
from cache_dit_serving.pipeline.memory import peak_resident_bytes

FRAMES, HEIGHT, WIDTH, FPS = 49, 480, 832, 16.0
OPTIONS = dict(X264.options)
RUNS = 5
TICK_S = 0.002


@dataclass(frozen=True)
class OutputFile:
    """One way to encode the clip."""

    seconds: float
    """Median."""
    peak_mb: float
    """Resident memory above that of the process with its frames."""
    file_mb: float


def frames() -> NDArray[np.float32]:
    """Smooth shapes that move, with the grain of a film: (frames, height, width, 3) floats."""
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32)
    noise = np.random.default_rng(0).normal(0, 0.01, (HEIGHT, WIDTH, 3)).astype(np.float32)
    made = np.empty((FRAMES, HEIGHT, WIDTH, 3), dtype=np.float32)
    for index in range(FRAMES):
        wave = 0.5 + 0.4 * np.sin((x + 6 * index) / 40) * np.cos((y - 3 * index) / 55)
        picture = np.stack([wave, 1 - wave, 0.3 + 0.4 * x / WIDTH], axis=-1) + np.roll(noise, 7 * index, axis=1)
        made[index] = np.clip(picture, 0, 1)
    return made


def pyav_alone(pixels: NDArray[np.float32]) -> bytes:
    """What a script would do: all frames to bytes, then PyAV with the same codec options."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.mp4"
        with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
            stream = container.add_stream("libx264", rate=Fraction(FPS), options=OPTIONS)
            stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
            for picture in (pixels * 255).round().astype(np.uint8):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
        return path.read_bytes()


def served(pixels: NDArray[np.float32]) -> bytes:
    return encode_video(VideoOutput(pixels, FPS), "mp4", {"prompt": "a benchmark"})


def measure() -> dict[str, OutputFile]:
    """Each way in a process of its own, whose peak is its alone; the runs alternate."""
    times: dict[str, list[float]] = {"PyAV alone": [], "served": []}
    made: dict[str, OutputFile] = {}
    for _ in range(RUNS):
        for name, encode in (("PyAV alone", pyav_alone), ("served", served)):
            seconds, peak_mb, file_mb = _in_process(encode)
            times[name].append(seconds)
            made[name] = OutputFile(statistics.median(times[name]), peak_mb, file_mb)
    return made


def loop_p99_ms() -> float:
    """How late an event loop wakes while a thread beside it encodes the clip: the 99th percentile over all wake-ups."""
    return asyncio.run(_late_ms(frames()))


async def _late_ms(pixels: NDArray[np.float32]) -> float:
    late = []
    encoding = asyncio.ensure_future(asyncio.to_thread(served, pixels))
    while not encoding.done():
        began = time.perf_counter()
        await asyncio.sleep(TICK_S)
        late.append((time.perf_counter() - began - TICK_S) * 1000)
    return statistics.quantiles(late, n=100)[-1]


def _in_process(encode: Callable[[NDArray[np.float32]], bytes]) -> tuple[float, float, float]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_encode, args=(encode, theirs))
    process.start()
    result: tuple[float, float, float] = ours.recv()
    process.join()
    return result


def _encode(encode: Callable[[NDArray[np.float32]], bytes], pipe: multiprocessing.connection.Connection) -> None:
    pixels = frames()
    encode(pixels[:2])  # libraries are loaded
    before = peak_resident_bytes() or 0
    began = time.perf_counter()
    content = encode(pixels)
    seconds = time.perf_counter() - began
    pipe.send((seconds, ((peak_resident_bytes() or 0) - before) / 2**20, len(content) / 1e6))


def rows(measured: dict[str, OutputFile]) -> str:
    return "\n".join(
        f"| {name} | {one.seconds:.2f} | {one.peak_mb:.0f} | {one.file_mb:.2f} |" for name, one in measured.items()
    )


if __name__ == "__main__":
    print(f"frames: {FRAMES * HEIGHT * WIDTH * 3 * 4 / 1e6:.0f} MB as floats")
    for name, encoded in measure().items():
        print(name, encoded)
    print(f"event loop late by {loop_p99_ms():.1f} ms (p99)")
