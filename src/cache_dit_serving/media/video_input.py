"""Videos that requests bring: from the bytes that a client sent to frames, within bounds."""

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
"""Degrees."""
CODECS = frozenset({"h264", "hevc", "vp8", "vp9", "libdav1d", "av1", "libvpx", "libvpx-vp9"})
"""Decoders that are run; each more is one more to be attacked through."""
CHECKS = {"mp4": check_mp4, "matroska": check_webm}
"""Run before the demuxer of each format."""
TIMED_FRAMES = 1_000
"""Frames whose times tell the rate; their packets are read, not decoded."""
THREADS = 2
"""Of a decoder. libav takes one for each core, and each reserves memory."""


@dataclass(frozen=True)
class InputVideo:
    """The first frames of a video, as a pipeline is given them."""

    frames: tuple[Image.Image, ...]
    """Upright, RGB, all of one size."""
    fps: float
    more: bool
    """Whether the file holds more of them."""
    digest: str
    """SHA-256 of the file that was sent, in hexadecimal."""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height), pixels."""
        return self.frames[0].size

    def beginning(self, count: int) -> InputVideo:
        """The same video with no more than its first `count` frames."""
        return replace(self, frames=self.frames[:count], more=self.more or count < len(self.frames))


def read_video(content: bytes, settings: Bounds, param: str, most_frames: int) -> InputVideo:
    """The first frames of an MP4 or WebM file; its sound is left out.

    Raises:
        InvalidRequest: naming `param` and the remedy.
    """
    import av  # here: PyAV takes 18 MB, and a server of pictures has no use for it

    demuxer = _demuxer_of(content)
    if demuxer is None:
        raise InvalidRequest(f"{param} is not a video this server reads; send MP4 or WebM", param=param)
    try:
        CHECKS[demuxer](content)
    except Excessive as claim:
        raise InvalidRequest(f"{param} {claim}; save the video anew, as MP4 with H.264", param=param) from None
    frames: list[Image.Image] = []
    try:
        # Never by probing: among ffmpeg's demuxers are playlists, which open addresses and files.
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
        # Opened anew: seeking back ends some files' decoding.
        with av.open(io.BytesIO(content), format=demuxer) as container:
            for frame in _even(container, container.streams.video[0], interval, settings, param):
                if len(frames) == most_frames:
                    more = True
                    break
                frames.append(frame)
    except (InvalidRequest, MemoryError):
        raise
    except Exception as error:  # whatever a decoder makes of a broken file
        raise InvalidRequest(f"{param} is broken: its video ends or errs", param=param) from error
    if not frames:
        raise InvalidRequest(f"{param} holds no frame that can be decoded", param=param)
    fps = min(float(MOST_FPS), float(1 / interval))
    return InputVideo(tuple(frames), fps, more, hashlib.sha256(content).hexdigest())


def _interval(container: Any, stream: Any) -> Fraction:
    """Seconds from one frame to the next by the times of the first packets; of a single frame, as the file claims."""
    packets = (packet for packet in container.demux(stream) if packet.pts is not None and not packet.is_discard)
    times = [packet.pts * packet.time_base for packet in itertools.islice(packets, TIMED_FRAMES)]
    rate = stream.average_rate or stream.guessed_rate or 1
    return usual_interval(times) or 1 / Fraction(rate)


def _even(container: Any, stream: Any, interval: Fraction, settings: Bounds, param: str) -> Iterator[Image.Image]:
    """Frames at a constant rate, upright."""
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
    """Frames with their times, seconds; one that has none comes after the usual interval."""
    time = -interval
    for frame in frames:
        time = time + interval if frame.pts is None else frame.pts * frame.time_base
        yield time, frame


def _upright(frame: Any) -> Image.Image:
    """A frame as it is to be shown: cameras turn by quarters."""
    turn = round(frame.rotation / QUARTER) % 4 * QUARTER
    image: Image.Image = frame.to_image()
    return image.rotate(turn, expand=True) if turn else image


def _demuxer_of(content: bytes) -> str | None:
    if content[4:8] == b"ftyp":
        return "mp4"
    return "matroska" if content.startswith(b"\x1a\x45\xdf\xa3") else None
