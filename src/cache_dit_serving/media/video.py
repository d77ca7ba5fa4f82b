"""Clips to bytes: H.264 and AAC in MP4, animated WebP, animated GIF; one frame at a time, each holding the request as
text.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cache_dit_serving.media.formats import VideoFormat
from cache_dit_serving.media.images import pixels_of
from cache_dit_serving.media.sound import Track
from cache_dit_serving.media.values import Clip

H264 = {"crf": "18", "preset": "fast", "x264-params": "cpu-independent=1"}
"""Options of libx264. Constant quality that the eye does not tell from the frames (17 to 18 by ffmpeg's guide), and the
same bytes for the same frames: without `cpu-independent`, x264's vectorised macroblock tree reads memory that nothing
has written, and a file differs from run to run (at 64 x 64 pixels in nearly every run, at 832 x 480 in half of them).
"""
TICKS = {"webp": 1000, "gif": 100}
"""In which the format counts the time of a frame, per second."""
IMAGE_DESCRIPTION = 0x010E
"""EXIF tag."""


def encode_clip(clip: Clip, video_format: VideoFormat, parameters: dict[str, Any]) -> bytes:
    """Encode a clip: every frame once, at the clip's frame rate. Its sound, if it has one, is in an MP4 alone.

    Args:
        parameters: what drew it; goes into the file's comment as JSON.
    """
    # As ASCII: EXIF knows no other text.
    text = json.dumps(parameters, sort_keys=True)
    if video_format == "mp4":
        return _mp4(clip, text)
    return _animation(clip, video_format, text)


def _mp4(clip: Clip, text: str) -> bytes:
    """H.264, yuv420p, BT.709, with the index in front of the frames so that players begin before the file is whole."""
    import av  # here: PyAV takes 18 MB, and a server of pictures has no use for it
    from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

    # A file: with its index in front, ffmpeg opens what it has written a second time, by name.
    with tempfile.TemporaryDirectory(prefix="clip-") as folder:
        path = Path(folder) / "clip.mp4"
        with av.open(str(path), "w", options={"movflags": "faststart"}) as container:
            container.metadata["comment"] = text
            rate = Fraction(clip.fps).limit_denominator(1001)
            stream = container.add_stream("libx264", rate=rate, options=H264)
            stream.height, stream.width = clip.array.shape[1:3]
            stream.pix_fmt = "yuv420p"
            context = stream.codec_context
            context.time_base = 1 / rate
            # Players take a file that does not say for BT.601 where it is small, and its colours would shift.
            context.colorspace = Colorspace.ITU709
            context.color_range = ColorRange.MPEG
            context.color_primaries = ColorPrimaries.BT709
            context.color_trc = ColorTrc.BT709
            track = Track(container, clip.sound) if clip.sound else None
            for index, pixels in enumerate(_frames(clip)):
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(
                    format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
                )
                frame.pts, frame.time_base = index, 1 / rate
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
            if track:
                track.write()
        return path.read_bytes()


def _animation(clip: Clip, video_format: VideoFormat, text: str) -> bytes:
    frames = (Image.fromarray(pixels) for pixels in _frames(clip))
    options: dict[str, Any] = {"comment": text.encode()}
    if video_format == "webp":
        exif = Image.Exif()
        exif[IMAGE_DESCRIPTION] = text
        options = {"exif": exif, "quality": 90, "method": 2}
    buffer = io.BytesIO()
    first = next(frames)
    durations = _durations_ms(len(clip.array), clip.fps, TICKS[video_format])
    first.save(buffer, video_format.upper(), save_all=True, append_images=frames, duration=durations, loop=0, **options)
    return buffer.getvalue()


def _frames(clip: Clip) -> Iterator[np.ndarray[Any, Any]]:
    """Each frame as (height, width, 3) bytes."""
    return (pixels_of(frame) for frame in clip.array)


def _durations_ms(frames: int, fps: float, ticks: int) -> list[int]:
    """Milliseconds of each frame in whole ticks, so spread that no frame begins more than half a tick off its time."""
    begins = [round(index * ticks / fps) for index in range(frames + 1)]
    return [(end - begin) * 1000 // ticks for begin, end in pairwise(begins)]
