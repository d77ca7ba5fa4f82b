"""The choice of an MP4's encoder. No machine of the tests has NVENC: another of ffmpeg's encoders stands in for it."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import av
import numpy as np
import pytest

from cache_dit_serving.config.settings import EncoderChoice
from cache_dit_serving.errors import LoadError
from cache_dit_serving.media import video_encoders
from cache_dit_serving.media.encode import encode
from cache_dit_serving.media.kinds import OutputSpec
from cache_dit_serving.media.values import ImageOutput, VideoOutput
from cache_dit_serving.media.video import encode_video
from cache_dit_serving.media.video_encoders import NVENC, X264, VideoEncoder, encoder_name, video_encoder

STAND_IN = VideoEncoder("mpeg4", {"b": "400000"}, least_side=160)


@pytest.fixture(autouse=True)
def untried() -> Iterator[None]:
    video_encoder.cache_clear()
    yield
    video_encoder.cache_clear()


def codec_of(content: bytes) -> str:
    with av.open(io.BytesIO(content), "r") as container:
        assert len(list(container.decode(video=0))) == 3
        return container.streams.video[0].codec_context.name


def clip(side: int) -> VideoOutput:
    return VideoOutput(np.full((3, side, side, 3), 0.5, np.float32), 8.0)


def test_ffmpeg_here_knows_nvenc() -> None:
    assert av.codec.Codec(NVENC.codec, "w").is_encoder


def test_a_machine_without_nvenc_is_refused_with_the_remedy() -> None:
    with pytest.raises(
        LoadError, match=r"^outputs\.video_encoder: nvenc cannot be opened here; .* choose x264 or auto$"
    ):
        video_encoder("nvenc")


def test_auto_takes_x264_where_nvenc_is_missing_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert video_encoder("auto") is video_encoder("x264") is X264
    assert "MP4 files are encoded by x264" in caplog.text


@pytest.mark.parametrize("choice", ["nvenc", "auto"])
def test_a_machine_with_nvenc_uses_it_for_videos_that_are_large_enough(
    monkeypatch: pytest.MonkeyPatch, choice: EncoderChoice
) -> None:
    monkeypatch.setattr(video_encoders, "NVENC", STAND_IN)
    encoder = video_encoder(choice)
    assert encoder is STAND_IN
    assert encoder_name(choice).startswith("mpeg4, PyAV ")
    assert codec_of(encode_video(clip(160), "mp4", {}, encoder=encoder)) == "mpeg4"
    assert codec_of(encode_video(clip(64), "mp4", {}, encoder=encoder)) == "h264"


def test_images_need_no_video_encoder() -> None:
    image = ImageOutput(np.full((8, 8, 3), 0.5, np.float32))
    content, _ = encode(image, OutputSpec("png", video_encoder="nvenc"), {})
    assert content.startswith(b"\x89PNG")
    with pytest.raises(LoadError):
        encode(clip(8), OutputSpec("mp4", video_encoder="nvenc"), {})
