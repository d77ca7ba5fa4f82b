"""Encoding of sound: 16-bit WAV and FLAC with the request as text, and the AAC track of a video."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from cache_dit_serving.errors import InternalError
from cache_dit_serving.media.provenance import FLAC_FIELD, DigitalSource, in_wav
from cache_dit_serving.media.values import Array, AudioOutput

if TYPE_CHECKING:
    import av

AudioFormat = Literal["wav", "flac"]
CODECS: dict[AudioFormat, str] = {"wav": "pcm_s16le", "flac": "flac"}
LAYOUTS = {1: "mono", 2: "stereo"}
"""Channel layout by number of channels."""
UNIT = 2**15
"""16-bit value of a sample of 1.0, as decoders scale it. The largest encoded value is one less."""
AAC_RATES = frozenset({7350, 8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000})
USUAL_RATE = 48_000


def encode_audio(
    audio: AudioOutput,
    audio_format: AudioFormat,
    parameters: dict[str, Any],
    source: DigitalSource | None = None,
) -> bytes:
    """Encode a sound at its own rate. Samples are clipped to [-1, 1] and rounded to 16 bits; nothing else is lost.

    Args:
        parameters: the request; written into the file's comment as JSON.
        source: origin that the file states; None: it states none.
    """
    import av  # here: PyAV takes 18 MB, and a server of images has no use for it

    buffer = io.BytesIO()
    with av.open(buffer, "w", format=audio_format) as container:
        container.metadata["comment"] = json.dumps(parameters, sort_keys=True)
        if source is not None and audio_format == "flac":
            container.metadata[FLAC_FIELD] = source.address
        stream: Any = container.add_stream(CODECS[audio_format], rate=audio.rate, layout=_layout(audio), format="s16")
        for samples in _seconds(audio):
            whole = (samples * UNIT).round().clip(-UNIT, UNIT - 1).astype(np.int16)
            # Interleaved: the channels of one sample are adjacent.
            frame = av.AudioFrame.from_ndarray(whole.T.reshape(1, -1), format="s16", layout=_layout(audio))
            frame.sample_rate = audio.rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    content = buffer.getvalue()
    return in_wav(content, source) if source is not None and audio_format == "wav" else content


class Track:
    """AAC track of a video that is being written. A sample rate that AAC lacks is resampled to `USUAL_RATE`."""

    def __init__(self, container: Any, audio: AudioOutput) -> None:
        import av

        self._container, self._audio = container, audio
        rate = audio.rate if audio.rate in AAC_RATES else USUAL_RATE
        self._stream = container.add_stream("aac", rate=rate, layout=_layout(audio))
        self._resampler = av.AudioResampler(format="fltp", layout=_layout(audio), rate=rate)

    def write(self) -> None:
        """Encode the whole sound. The container interleaves it with the frames."""
        import av

        for index, samples in enumerate(_seconds(self._audio)):
            plane = np.ascontiguousarray(samples.clip(-1, 1), dtype=np.float32)
            frame = av.AudioFrame.from_ndarray(plane, format="fltp", layout=_layout(self._audio))
            frame.sample_rate = self._audio.rate
            # From these times the container records the encoder's priming samples, which players skip.
            frame.pts, frame.time_base = index * self._audio.rate, Fraction(1, self._audio.rate)
            self._encode(self._resampler.resample(frame))
        self._encode(self._resampler.resample(None))
        self._container.mux(self._stream.encode())

    def _encode(self, frames: list[av.AudioFrame]) -> None:
        for frame in frames:
            self._container.mux(self._stream.encode(frame))


def _seconds(audio: AudioOutput) -> Iterator[Array]:
    """Yield the samples in pieces of one second, (channels, up to `rate` samples)."""
    return (audio.array[:, begin : begin + audio.rate] for begin in range(0, audio.array.shape[1], audio.rate))


def _layout(audio: AudioOutput) -> str:
    channels = len(audio.array)
    if channels not in LAYOUTS:
        raise InternalError(f"The model made a sound of {channels} channels; one or two can be encoded.")
    return LAYOUTS[channels]
