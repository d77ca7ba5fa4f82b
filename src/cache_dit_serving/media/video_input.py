"""Videos that requests bring: from the bytes that a client sent to frames, within bounds."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from PIL import Image

from cache_dit_serving.errors import InvalidRequest
from cache_dit_serving.media.bounds import Bounds, check_shape
from cache_dit_serving.media.structure.excessive import Excessive
from cache_dit_serving.media.structure.mp4 import check_mp4
from cache_dit_serving.media.structure.webm import check_webm

VIDEO_TYPES = frozenset({"video/mp4", "video/quicktime", "video/webm", "video/x-matroska"})
CODECS = frozenset({"h264", "hevc", "vp8", "vp9", "libdav1d", "av1", "libvpx", "libvpx-vp9"})
"""Decoders that are run; each more is one more to be attacked through."""
CHECKS = {"mp4": check_mp4, "matroska": check_webm}
"""Run before the demuxer of each format."""
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
            fps = float(stream.average_rate or stream.guessed_rate or 0)
            more = False
            for frame in _decoded(container, stream, settings, param):
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
    return InputVideo(tuple(frames), fps, more, hashlib.sha256(content).hexdigest())


def _decoded(container: Any, stream: Any, settings: Bounds, param: str) -> Iterator[Image.Image]:
    size, pixels_left = (stream.width, stream.height), settings.max_video_pixels
    check_shape(size, settings, param)
    stream.codec_context.options = {"max_pixels": str(pixels_left)}
    stream.codec_context.thread_count = THREADS
    for frame in container.decode(stream):
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
        image = frame.to_image()
        yield image.rotate(frame.rotation, expand=True) if frame.rotation else image


def _demuxer_of(content: bytes) -> str | None:
    if content[4:8] == b"ftyp":
        return "mp4"
    return "matroska" if content.startswith(b"\x1a\x45\xdf\xa3") else None
