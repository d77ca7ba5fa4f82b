"""Encoding of videos, a frame at a time: MP4 (H.264 and AAC), animated WebP and GIF, each with the request as text."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from cache_dit_serving.media.audio import Track
from cache_dit_serving.media.images import pixels_of
from cache_dit_serving.media.provenance import DigitalSource, in_gif, in_mp4, pillow_options
from cache_dit_serving.media.values import VideoOutput
from cache_dit_serving.media.video_encoders import X264, VideoEncoder

VideoFormat = Literal["mp4", "webp", "gif"]
MOST_GIF_FPS = 50
"""Maximum frame rate of a GIF. It counts time in 1/100 s, and browsers show each frame for at least two of them."""
TICKS = {"webp": 1000, "gif": 100}
"""Resolution of frame durations by format, ticks per second."""
IMAGE_DESCRIPTION = 0x010E
"""EXIF tag that holds the request as text in a WebP."""


def encode_video(
    video: VideoOutput,
    video_format: VideoFormat,
    parameters: dict[str, Any],
    *,
    source: DigitalSource | None = None,
    encoder: VideoEncoder = X264,
) -> bytes:
    """Encode a video at its frame rate, every frame once. Only an MP4 holds its sound.

    Args:
        parameters: the request; written into the file's comment as JSON.
        source: origin that the file states; None: it states none.
        encoder: encoder of an MP4; x264 encodes a video that is too small for it.
    """
    # ASCII, because EXIF allows no other text.
    text = json.dumps(parameters, sort_keys=True)
    if video_format == "mp4":
        content = _mp4(video, text, encoder if min(video.array.shape[1:3]) >= encoder.least_side else X264)
        return content if source is None else in_mp4(content, source)
    content = _animation(video, video_format, text, source)
    return in_gif(content, source) if video_format == "gif" and source is not None else content


def _mp4(video: VideoOutput, text: str, encoder: VideoEncoder) -> bytes:
    """Encode H.264, yuv420p, BT.709. The index is in front of the frames, so that players can start before the end."""
    import av  # here: PyAV takes 18 MB, and a server of images has no use for it
    from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

    # A file, not a buffer: to move the index to the front, ffmpeg opens its output a second time by name.
    with tempfile.TemporaryDirectory(prefix="clip-") as folder:
        path = Path(folder) / "clip.mp4"
        with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
            container.metadata["comment"] = text
            rate = Fraction(video.fps).limit_denominator(1001)
            stream = container.add_stream(encoder.codec, rate=rate, options=dict(encoder.options))
            assert isinstance(stream, av.VideoStream)
            stream.height, stream.width = video.array.shape[1:3]
            stream.pix_fmt = "yuv420p"
            context = stream.codec_context
            context.time_base = 1 / rate
            # Players assume BT.601 for a small file without these tags, and its colours would shift.
            context.colorspace = Colorspace.ITU709
            context.color_range = ColorRange.MPEG
            context.color_primaries = ColorPrimaries.BT709
            context.color_trc = ColorTrc.BT709
            track = Track(container, video.audio) if video.audio else None
            for index, pixels in enumerate(_frames(video)):
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(
                    format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
                )
                frame.pts, frame.time_base = index, 1 / rate
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
            if track:
                track.write()
        return path.read_bytes()


def _animation(video: VideoOutput, video_format: VideoFormat, text: str, source: DigitalSource | None) -> bytes:
    frames = (Image.fromarray(pixels) for pixels in _frames(video))
    options: dict[str, Any] = {"comment": text.encode()}
    if video_format == "webp":
        exif = Image.Exif()
        exif[IMAGE_DESCRIPTION] = text
        options = {"exif": exif, "quality": 90, "method": 2, **pillow_options(source)}
    buffer = io.BytesIO()
    first = next(frames)
    durations = _durations_ms(len(video.array), video.fps, TICKS[video_format])
    first.save(buffer, video_format.upper(), save_all=True, append_images=frames, duration=durations, loop=0, **options)
    return buffer.getvalue()


def _frames(video: VideoOutput) -> Iterator[np.ndarray[Any, Any]]:
    """Yield each frame as (height, width, 3) bytes."""
    return (pixels_of(frame) for frame in video.array)


def _durations_ms(frames: int, fps: float, ticks: int) -> list[int]:
    """Return each frame's duration in milliseconds, in whole ticks. No frame starts more than half a tick off."""
    begins = [round(index * ticks / fps) for index in range(frames + 1)]
    return [(end - begin) * 1000 // ticks for begin, end in pairwise(begins)]
