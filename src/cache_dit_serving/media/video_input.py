"""Input videos: decoding of uploaded bytes to frames, within bounds."""

from __future__ import annotations

import hashlib
import io
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from PIL import Image

from cache_dit_serving.errors import InvalidRequest
from cache_dit_serving.media.bounds import Bounds, check_shape
from cache_dit_serving.media.frame_times import MOST_FPS, at_even_times, usual_interval
from cache_dit_serving.media.structure.excessive import Excessive
from cache_dit_serving.media.structure.mp4 import check_mp4
from cache_dit_serving.media.structure.webm import check_webm

QUARTER = 90
"""Quarter turn, degrees."""
CODECS = frozenset({"h264", "hevc", "vp8", "vp9", "libdav1d", "av1", "libvpx", "libvpx-vp9"})
"""Names of the allowed video decoders. Few, because each adds attack surface."""
CHECKS = {"mp4": check_mp4, "matroska": check_webm}
"""Structure check of each format, by demuxer name. It runs before the demuxer."""
TIMED_FRAMES = 1_000
"""Number of frames from whose times the rate is measured. Their packets are read, not decoded."""
THREADS = 2
"""Threads per decoder. libav's default is one per core, and each reserves memory."""


@dataclass(frozen=True)
class InputVideo:
    """The first frames of a video, ready for a pipeline."""

    frames: tuple[Image.Image, ...]
    """Upright frames, mode RGB, all of one size."""
    fps: float
    """Frame rate, frames per second, at most `MOST_FPS`."""
    more: bool
    """True if the file holds more frames."""
    digest: str
    """SHA-256 of the uploaded file, hexadecimal."""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height), pixels."""
        return self.frames[0].size

    def beginning(self, count: int) -> InputVideo:
        """Return the video cut to its first `count` frames."""
        return replace(self, frames=self.frames[:count], more=self.more or count < len(self.frames))


def read_video(content: bytes, settings: Bounds, param: str, most_frames: int) -> InputVideo:
    """Decode the first `most_frames` frames of an MP4 or WebM file at a constant rate. Sound is ignored.

    Raises:
        InvalidRequest: the file is refused or broken; the message names `param` and the remedy.
    """
    import av  # here: PyAV takes 18 MB, and a server of images has no use for it

    demuxer = _demuxer_of(content)
    if demuxer is None:
        raise InvalidRequest(f"{param} is not a video this server reads; send MP4 or WebM", param=param)
    try:
        CHECKS[demuxer](content)
    except Excessive as claim:
        raise InvalidRequest(f"{param} {claim}; save the video anew, as MP4 with H.264", param=param) from None
    frames: list[Image.Image] = []
    try:
        # The demuxer is never probed: some of ffmpeg's, such as playlists, open URLs and files.
        with av.open(io.BytesIO(content), format=demuxer) as container:
            if not container.streams.video:
                raise InvalidRequest(f"{param} holds no video", param=param)
            stream = container.streams.video[0]
            if stream.codec_context.name not in CODECS:
                raise InvalidRequest(
                    f"{param} is coded as {stream.codec_context.name}; send H.264, HEVC, VP9 or AV1", param=param
                )
            interval = _interval(container, stream)
            more = False
        # Opened again, because decoding of some files ends after a seek back.
        with av.open(io.BytesIO(content), format=demuxer) as container:
            for frame in _even(container, container.streams.video[0], interval, settings, param):
                if len(frames) == most_frames:
                    more = True
                    break
                frames.append(frame)
    except (InvalidRequest, MemoryError):
        raise
    except Exception as error:  # a decoder may raise anything on a broken file
        raise InvalidRequest(f"{param} is broken: its video ends or errs", param=param) from error
    if not frames:
        raise InvalidRequest(f"{param} holds no frame that can be decoded", param=param)
    fps = min(float(MOST_FPS), float(1 / interval))
    return InputVideo(tuple(frames), fps, more, hashlib.sha256(content).hexdigest())


def _interval(container: Any, stream: Any) -> Fraction:
    """Return the usual interval of the first `TIMED_FRAMES` frames, seconds. A single frame has the claimed rate."""
    packets = (packet for packet in container.demux(stream) if packet.pts is not None and not packet.is_discard)
    times = [packet.pts * packet.time_base for packet in itertools.islice(packets, TIMED_FRAMES)]
    rate = stream.average_rate or stream.guessed_rate or 1
    return usual_interval(times) or 1 / Fraction(rate)


def _even(container: Any, stream: Any, interval: Fraction, settings: Bounds, param: str) -> Iterator[Image.Image]:
    """Yield upright frames at a constant rate.

    Raises:
        InvalidRequest: the frames change their size, or exceed a bound on sides or pixels.
    """
    size, pixels_left = (stream.width, stream.height), settings.max_video_pixels
    check_shape(size, settings, param)
    stream.codec_context.options = {"max_pixels": str(pixels_left)}
    stream.codec_context.thread_count = THREADS
    shown: tuple[Any, Image.Image] | None = None
    for frame in at_even_times(_timed(container.decode(stream), interval), interval):
        if (frame.width, frame.height) != size:
            raise InvalidRequest(f"{param} changes its size on the way", param=param)
        pixels_left -= frame.width * frame.height
        if pixels_left < 0:
            raise InvalidRequest(
                f"{param} has frames of {size[0]:,} x {size[1]:,} pixels; all that are read may have "
                f"{settings.max_video_pixels:,} together: send a smaller or shorter one",
                param=param,
                code="too_long",
            )
        if shown is None or shown[0] is not frame:
            shown = frame, _upright(frame)
        yield shown[1]


def _timed(frames: Iterable[Any], interval: Fraction) -> Iterator[tuple[Fraction, Any]]:
    """Yield (time in seconds, frame). A frame without a time follows the previous one after `interval`."""
    time = -interval
    for frame in frames:
        time = time + interval if frame.pts is None else frame.pts * frame.time_base
        yield time, frame


def _upright(frame: Any) -> Image.Image:
    """Return a frame as an image, turned upright by the rotation in the file, in quarter turns."""
    turn = round(frame.rotation / QUARTER) % 4 * QUARTER
    image: Image.Image = frame.to_image()
    return image.rotate(turn, expand=True) if turn else image


def _demuxer_of(content: bytes) -> str | None:
    if content[4:8] == b"ftyp":
        return "mp4"
    return "matroska" if content.startswith(b"\x1a\x45\xdf\xa3") else None
