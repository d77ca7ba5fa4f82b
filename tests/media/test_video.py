"""Clips to files: what a player finds in them is what the model made."""

from __future__ import annotations

import io
import json
import os
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image, ImageSequence

from cache_dit_serving.measure.distances.pictures import psnr
from cache_dit_serving.media.values import VideoOutput
from cache_dit_serving.media.video import VideoFormat, encode_video
from cache_dit_serving.media.video_encoders import x264
from tests.support.images import apple

PARAMETERS = {"prompt": "eine Katze, läuft", "seed": 7, "cache": {"enabled": False}}


def clip(frames: int = 9, fps: float = 16.0, width: int = 96, height: int = 64) -> VideoOutput:
    """A coloured disc that moves over a gradient."""
    y, x = np.mgrid[:height, :width]
    ground = np.stack([x / width, y / height, np.full_like(x, 0.3, dtype=float)], axis=-1)
    pictures = []
    for index in range(frames):
        picture = ground.copy()
        picture[(x - 10 - 3 * index) ** 2 + (y - 30) ** 2 < 100] = (0.9, 0.1, 0.2)
        pictures.append(picture)
    return VideoOutput(np.stack(pictures).astype(np.float32), fps)


def decoded(content: bytes) -> tuple[Any, np.ndarray[Any, Any]]:
    """The stream and its frames, (frames, height, width, 3) floats in [0, 1]."""
    container: Any = av.open(io.BytesIO(content))
    stream = container.streams.video[0]
    frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
    return stream, frames / 255


@pytest.mark.parametrize("fps", [8.0, 16.0, 24.0, 25.0, 23.976, 30.0, 120.0])
def test_an_mp4_holds_every_frame_at_its_rate(fps: float) -> None:
    stream, frames = decoded(encode_video(clip(fps=fps), "mp4", PARAMETERS))
    assert len(frames) == stream.frames == 9
    assert float(stream.average_rate) == pytest.approx(fps, rel=1e-4)
    assert float(stream.duration * stream.time_base) == pytest.approx(9 / fps, rel=1e-3)


def test_an_mp4_plays_anywhere_and_shows_the_colours_of_the_frames() -> None:
    made = clip()
    content = encode_video(made, "mp4", PARAMETERS)
    stream, frames = decoded(content)
    context = stream.codec_context
    assert (context.name, context.pix_fmt, context.width, context.height) == ("h264", "yuv420p", 96, 64)
    assert context.colorspace == 1, "BT.709, and says so"
    assert min(psnr(ours, reference) for ours, reference in zip(frames, made.array, strict=True)) > 30
    assert content.index(b"moov") < content.index(b"mdat"), "the index stands behind the frames"


def test_an_mp4_of_one_colour_comes_back_as_that_colour() -> None:
    colour = (0.8, 0.3, 0.1)
    made = VideoOutput(np.broadcast_to(np.array(colour, dtype=np.float32), (5, 64, 64, 3)), 16.0)
    _, frames = decoded(encode_video(made, "mp4", {}))
    assert frames.mean(axis=(0, 1, 2)) == pytest.approx(colour, abs=0.012)


def test_an_mp4_of_the_same_frames_is_the_same_file() -> None:
    frames = np.stack([np.asarray(apple(32, 32).rotate(8 * index), dtype=np.float32) / 255 for index in range(11)])
    sizes = np.random.default_rng(0)
    files = set()
    for number in range(200):
        # So that the encoder is given memory that holds something.
        written = [bytes([number]) * int(size) for size in sizes.integers(1, 200_000, 20)]
        files.add(encode_video(VideoOutput(frames, 12.0), "mp4", {}))
        del written
    assert len(files) == 1


def test_an_mp4_is_the_same_file_on_any_number_of_cores() -> None:
    made, cores = clip(width=320, height=256), os.sched_getaffinity(0)
    files = {encode_video(made, "mp4", {})}
    try:
        os.sched_setaffinity(0, {min(cores)})
        files.add(encode_video(made, "mp4", {}))
    finally:
        os.sched_setaffinity(0, cores)
    assert len(files) == 1
    assert files != {encode_video(made, "mp4", {}, encoder=x264(threads=1))}, "this clip shows no number of threads"


def test_an_mp4_holds_the_request() -> None:
    container = av.open(io.BytesIO(encode_video(clip(), "mp4", PARAMETERS)))
    assert json.loads(container.metadata["comment"]) == PARAMETERS


@pytest.mark.parametrize(("video_format", "tick_ms"), [("webp", 1), ("gif", 10)])
@pytest.mark.parametrize("fps", [8.0, 24.0, 30.0])
def test_an_animation_holds_every_frame_and_lasts_as_long(video_format: VideoFormat, tick_ms: int, fps: float) -> None:
    made = clip(frames=17, fps=fps)
    animation: Any = Image.open(io.BytesIO(encode_video(made, video_format, PARAMETERS)))
    assert (animation.n_frames, animation.size) == (17, (96, 64))
    frames, lasts_ms = [], 0
    for frame in ImageSequence.Iterator(animation):
        frames.append(np.asarray(frame.convert("RGB")) / 255)
        lasts_ms += frame.info["duration"]
    assert lasts_ms == pytest.approx(17 / fps * 1000, abs=tick_ms)
    assert min(psnr(ours, reference) for ours, reference in zip(frames, made.array, strict=True)) > 24


def test_an_animation_holds_the_request() -> None:
    webp = Image.open(io.BytesIO(encode_video(clip(), "webp", PARAMETERS)))
    gif = Image.open(io.BytesIO(encode_video(clip(), "gif", PARAMETERS)))
    assert json.loads(webp.getexif()[0x010E]) == PARAMETERS
    assert json.loads(gif.info["comment"]) == PARAMETERS
