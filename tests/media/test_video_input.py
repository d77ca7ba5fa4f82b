"""Videos in: frames as they were, within bounds, and nothing but MP4 and WebM."""

from __future__ import annotations

import io
import math
from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from cache_dit_serving.config.settings import InputSettings
from cache_dit_serving.errors import InvalidRequest
from cache_dit_serving.measure.distances.pictures import psnr
from cache_dit_serving.media.audio import encode_audio
from cache_dit_serving.media.inputs import ImageReader
from cache_dit_serving.media.values import AudioOutput
from cache_dit_serving.media.video_input import InputVideo
from tests.support.images import apple, file_of
from tests.support.videos import FRAMES, mp4

QUARTER_TURN = b"".join(
    number.to_bytes(4, "big", signed=True) for number in (0, 1 << 16, 0, -(1 << 16), 0, 0, 48 << 16, 0, 1 << 30)
)
"""The matrix of a track header that shows its frames turned by 90 degrees."""


def coded(codec: str, container_format: str, sizes: list[tuple[int, int]]) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container_format) as container:
        stream: Any = container.add_stream(codec, rate=12)
        stream.width, stream.height = sizes[0]
        stream.pix_fmt = "yuv420p"
        for width, height in sizes:
            frame = av.VideoFrame.from_ndarray(np.full((height, width, 3), 90, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def turned(content: bytes) -> bytes:
    """The same file, its track header saying that it is to be shown turned."""
    matrix = content.index(b"tkhd") + 4 + 40
    return content[:matrix] + QUARTER_TURN + content[matrix + len(QUARTER_TURN) :]


def read(content: bytes, most_frames: int = 100, **settings: Any) -> InputVideo:
    return ImageReader(InputSettings(**settings)).video(content, "video_url", most_frames)


def test_every_frame_is_there_in_its_colours() -> None:
    video = read(mp4())
    assert (len(video.frames), video.fps, video.size, video.more) == (12, 12.0, (64, 48), False)
    for ours, sent in zip(video.frames, FRAMES, strict=True):
        assert ours.mode == "RGB"
        assert psnr(np.asarray(ours) / 255, np.asarray(sent) / 255) > 30


def test_no_more_frames_are_read_than_are_wanted() -> None:
    video = read(mp4(), most_frames=5)
    assert (len(video.frames), video.more) == (5, True)
    assert (len(read(mp4(), most_frames=12).frames), read(mp4(), most_frames=12).more) == (12, False)
    # Those that are not read do not count.
    assert len(read(mp4(FRAMES * 3), most_frames=1, max_video_pixels=64 * 48 * 2).frames) == 1


def test_a_webm_is_read_and_a_turned_video_stands_upright() -> None:
    webm = read(coded("libvpx-vp9", "webm", [(64, 48)] * 6))
    assert (len(webm.frames), webm.size) == (6, (64, 48))
    upright, sideways = read(mp4()), read(turned(mp4()))
    assert sideways.size == (48, 64)
    expected = upright.frames[0].transpose(Image.Transpose.ROTATE_270)
    assert psnr(np.asarray(sideways.frames[0]) / 255, np.asarray(expected) / 255) > 40


def at_times(times_ms: list[int], codec: str = "libx264", container_format: str = "mp4") -> bytes:
    """A video whose frame i shows its number in white and black columns, in a file that claims 1000 frames a second."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container_format) as container:
        stream: Any = container.add_stream(codec, rate=1000)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for index, time_ms in enumerate(times_ms):
            columns = np.repeat([255 * (index >> bit & 1) for bit in range(8)], 8).astype(np.uint8)
            pixels = np.ascontiguousarray(np.broadcast_to(columns[None, :, None], (48, 64, 3)))
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = time_ms, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()


def shown(video: InputVideo) -> list[int]:
    """The number that each frame shows."""
    bits = [np.asarray(frame.convert("L"))[24, 4::8] > 127 for frame in video.frames]
    return [sum(int(bit) << place for place, bit in enumerate(each)) for each in bits]


THIRTIETHS = [round(index * 1000 / 30) for index in range(60)]
VP8, VP9, H264 = ("libvpx", "webm"), ("libvpx-vp9", "webm"), ("libx264", "mp4")
IN_TIME: dict[str, tuple[list[int], tuple[str, str], float, list[int]]] = {
    "a browser's WebM": (THIRTIETHS, VP8, 30, list(range(60))),
    "whose first frame is late": ([time + 400 for time in THIRTIETHS], VP8, 30, list(range(60))),
    "one with a pause": (
        [0, 40, 80, 120, 320, 360, 400],
        VP9,
        25,
        [0, 1, 2, 3, 3, 3, 3, 3, 4, 5, 6],
    ),
    "one that misses frames": ([0, 40, 80, 160, 200, 240, 320], H264, 25, [0, 1, 2, 2, 3, 4, 5, 5, 6]),
    "an MP4 that is regular": (list(range(0, 400, 40)), H264, 25, list(range(10))),
    "slow motion": ([round(index * 1000 / 240) for index in range(96)], H264, 120, list(range(0, 96, 2))),
    "one frame": ([0], H264, 0, [0]),
}


@pytest.mark.parametrize("case", IN_TIME)
def test_a_video_is_read_by_the_times_of_its_frames(case: str) -> None:
    times_ms, coding, fps, frames = IN_TIME[case]
    video = read(at_times(times_ms, *coding))
    assert video.fps == pytest.approx(fps, rel=0.01) or len(frames) == 1
    assert shown(video) == frames
    assert not video.more


def test_a_pause_is_as_long_as_what_may_be_read_and_no_longer() -> None:
    content = at_times([0, 40, 80, 3_600_000], "libvpx", "webm")
    video = read(content, most_frames=9)
    assert (shown(video), video.more) == ([0, 1, 2, 2, 2, 2, 2, 2, 2], True)
    with pytest.raises(InvalidRequest, match="send a smaller or shorter one"):
        read(content, most_frames=10**6)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_video_stands_as_its_display_matrix_has_it(degrees: int) -> None:
    content = mp4()
    upright = read(content)
    sine, cosine = round(math.sin(math.radians(degrees))), round(math.cos(math.radians(degrees)))
    numbers = (cosine << 16, sine << 16, 0, -sine * 2**16, cosine * 2**16, 0, 0, 0, 1 << 30)
    matrix = b"".join(number.to_bytes(4, "big", signed=True) for number in numbers)
    at = content.index(b"tkhd") + 4 + 40
    video = read(content[:at] + matrix + content[at + len(matrix) :])
    for ours, sent in zip(video.frames, upright.frames, strict=True):
        assert np.array_equal(np.asarray(ours), np.asarray(sent.rotate(-degrees, expand=True)))  # clockwise


BAD: dict[str, tuple[bytes, dict[str, Any], str]] = {
    "a picture": (file_of(apple()), {}, "not a video this server reads; send MP4 or WebM"),
    "a playlist": (b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1/a.ts\n", {}, "not a video this server reads"),
    "text with the mark of an mp4": (b"\0\0\0\x18ftypisom" + b"x" * 4000, {}, "is broken|holds no video"),
    "half of a file": (mp4()[:900], {}, "is broken|holds no"),
    "sound alone": (
        encode_audio(AudioOutput(np.zeros((1, 8000), np.float32), 8000), "wav", {}),
        {},
        "not a video this server reads",
    ),
    "too many bytes": (mp4(), {"max_bytes": 1024}, "more than 1,024 bytes"),
    "too many pixels": (mp4(), {"max_video_pixels": 64 * 48 * 11}, "send a smaller or shorter one"),
    "frames larger than all": (mp4(), {"max_video_pixels": 4096 // 2 * 2}, "send a smaller|is broken"),
    "another codec": (coded("mpeg4", "mp4", [(64, 48)] * 3), {}, "is coded as mpeg4; send H.264"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_video_is_refused_by_name(case: str) -> None:
    content, settings, words = BAD[case]
    with pytest.raises(InvalidRequest, match=words) as refused:
        read(content, **settings)
    assert refused.value.param == "video_url"
