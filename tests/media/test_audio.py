"""Sounds as files: what a decoder reads from them is what was put in."""

from __future__ import annotations

import io
import json
import math
from typing import Any, get_args

import av
import numpy as np
import pytest

from cache_dit_serving.errors import InternalError
from cache_dit_serving.measure.distances.sounds import snr
from cache_dit_serving.media.audio import AudioFormat, encode_audio
from cache_dit_serving.media.encode import encode
from cache_dit_serving.media.kinds import OutputSpec
from cache_dit_serving.media.values import Array, AudioOutput, VideoOutput
from cache_dit_serving.media.video import encode_video


def tone(rate: int, seconds: float, channels: int = 2, amplitude: float = 0.8) -> AudioOutput:
    """A note in each channel, an octave apart."""
    moments = np.arange(round(rate * seconds)) / rate
    pitches = (330 * 2**channel for channel in range(channels))
    notes = [amplitude * np.sin(2 * math.pi * pitch * moments) for pitch in pitches]
    return AudioOutput(np.stack(notes).astype(np.float32), rate)


def decoded(content: bytes) -> tuple[Array, int, dict[str, str]]:
    """(channels, samples) as floats in [-1, 1], rate, metadata."""
    container: Any = av.open(io.BytesIO(content))
    resampler = av.AudioResampler(format="fltp")
    parts = [part.to_ndarray() for frame in container.decode(audio=0) for part in resampler.resample(frame)]
    return np.concatenate(parts, axis=1), container.streams.audio[0].rate, dict(container.metadata)


@pytest.mark.parametrize("audio_format", get_args(AudioFormat))
@pytest.mark.parametrize(("rate", "channels"), [(44_100, 2), (24_000, 1), (8_000, 2)])
def test_a_sound_is_kept_to_the_sixteenth_bit(audio_format: AudioFormat, rate: int, channels: int) -> None:
    sound = tone(rate, 1.3, channels)
    content = encode_audio(sound, audio_format, {"prompt": "a flöte", "seed": 3})
    samples, found_rate, metadata = decoded(content)
    assert found_rate == rate
    assert samples.shape == sound.array.shape
    assert np.abs(samples - sound.array).max() <= 0.5 / 2**15
    assert json.loads(metadata["comment"]) == {"prompt": "a flöte", "seed": 3}
    assert content[:4] == {"wav": b"RIFF", "flac": b"fLaC"}[audio_format]


def test_what_is_too_loud_is_cut_and_does_not_wrap_around() -> None:
    loud = tone(8_000, 0.5, 1, amplitude=1.5)
    samples, _, _ = decoded(encode_audio(loud, "wav", {}))
    assert np.abs(samples - loud.array.clip(-1, 1)).max() < 2 / 2**15


def test_a_sound_of_five_channels_is_refused() -> None:
    with pytest.raises(InternalError, match="5 channels"):
        encode_audio(tone(8_000, 0.1, 5), "wav", {})


@pytest.mark.parametrize("rate", [24_000, 44_100, 20_000])
def test_a_video_is_heard(rate: int) -> None:
    frames = np.linspace(0, 1, 25 * 32 * 32 * 3, dtype=np.float32).reshape(25, 32, 32, 3)
    sound = tone(rate, 1.0)
    content = encode_video(VideoOutput(frames, 25.0, sound), "mp4", {"seed": 3})
    container: Any = av.open(io.BytesIO(content))
    video, audio = container.streams.video[0], container.streams.audio[0]
    assert (video.frames, float(video.average_rate)) == (25, 25.0)
    assert (audio.codec_context.name, audio.channels) == ("aac", 2)
    assert audio.rate == (48_000 if rate == 20_000 else rate)
    assert content.find(b"moov") < content.find(b"mdat")
    assert json.loads(container.metadata["comment"]) == {"seed": 3}
    heard, found_rate, _ = decoded(content)
    assert heard.shape[1] / found_rate == pytest.approx(1.0, abs=1024 / found_rate + 0.001)
    # AAC is lossy, and the encoder starts up over its first frame: what follows is the sound.
    expected = tone(found_rate, 1.0).array
    middle = slice(found_rate // 4, found_rate // 2)
    assert snr(heard[:, middle], expected[:, middle]) > 20


def test_an_animation_of_a_video_with_sound_is_silent() -> None:
    frames = np.zeros((4, 16, 16, 3), dtype=np.float32)
    content, extension = encode(VideoOutput(frames, 8.0, tone(8_000, 0.5)), OutputSpec("gif"), {})
    assert extension == "gif"
    container: Any = av.open(io.BytesIO(content))
    assert not container.streams.audio
