"""Outputs of pipeline calls: their kind, and the conversion of a call's result to media values."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cache_dit_serving.errors import LoadError
from cache_dit_serving.media.values import Array, AudioOutput, ImageOutput, Media, MediaKind, VideoOutput

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


class OutputFields(NamedTuple):
    """Kind of a pipeline's output, and the fields of its output class that hold it."""

    kind: MediaKind
    field: str
    audio_field: str | None
    """Field of a video's sound; None if the output class has none."""


KINDS = {
    "images": MediaKind.IMAGE,
    "image": MediaKind.IMAGE,
    "frames": MediaKind.VIDEO,
    "video": MediaKind.VIDEO,
    "audios": MediaKind.AUDIO,
}
"""Kind of output by the name of an output class's field."""


def output_of(cls: type[DiffusionPipeline]) -> OutputFields:
    """Return the kind and fields of a pipeline class's output, from the output class that its call names.

    Raises:
        LoadError: the call names no output class, or only ones with fields that this server does not know.
    """
    from diffusers.utils import BaseOutput

    call = inspect.unwrap(cls.__call__)
    for name in call.__code__.co_names:
        output = call.__globals__.get(name)
        if isinstance(output, type) and issubclass(output, BaseOutput):
            fields = [field.name for field in dataclasses.fields(output)]
            found = next((field for field in fields if field in KINDS), None)
            if found is not None:
                audio = next((field for field in fields if field in ("audio", "sound")), None)
                return OutputFields(KINDS[found], found, audio)
    raise LoadError(f"{cls.__name__} makes neither pictures nor video nor audio, as far as its class says")


SOUND_CONFIGURATIONS = (("vae", "sampling_rate"), ("vae", "sample_rate"), ("vocoder", "output_sampling_rate"))
"""(component, key of its configuration) that may hold the rate of a pipeline's sound."""


def audio_rate_of(pipe: DiffusionPipeline) -> int | None:
    """Return the rate of a pipeline's sound, samples a second; None if the pipeline names no rate."""
    for name, key in SOUND_CONFIGURATIONS:
        config = getattr(getattr(pipe, name, None), "config", None) or {}
        if config.get(key) is not None:
            return int(config[key])
    return int(pipe.sample_rate) if hasattr(pipe, "sample_rate") else None


def media_of(output: Any, fields: OutputFields, *, fps: float | None, audio_rate: int | None) -> Media:
    """Return the only output of a call that was made with `output_type="np"`.

    Args:
        fps: frames per second of a video; None for other kinds.
        audio_rate: samples a second of the sound; None if there is none.
    """
    array = getattr(output, fields.field)[0]
    if fields.kind is MediaKind.IMAGE:
        return ImageOutput(array)
    if fields.kind is MediaKind.AUDIO:
        assert audio_rate is not None
        return AudioOutput(_samples(array), audio_rate)
    assert fps is not None
    if array.dtype.kind in "iu":  # Cosmos, whose safety checker works on bytes
        array = (array / np.iinfo(array.dtype).max).astype(np.float32)
    return VideoOutput(array, fps, _heard(output, fields, audio_rate))


@dataclass(frozen=True)
class Arriving:
    """Output of a call, which may still be on its way from the device."""

    shape: tuple[int, ...]
    """Shape of its array."""
    arrived: Callable[[], Media]
    """Function that waits for the output, on any thread, and returns it."""


def arriving(output: Any, fields: OutputFields, *, fps: float | None, audio_rate: int | None) -> Arriving:
    """Return the only image or video of a call that was made with `output_type="pt"`, as bytes made on the device.

    Args:
        fps: as of :func:`media_of`.
        audio_rate: as of :func:`media_of`.
    """
    from cache_dit_serving.pipeline.arrival import bytes_of, copying_stream, on_its_way

    pixels, are_finite = bytes_of(getattr(output, fields.field)[0])
    stream = copying_stream(pixels.device)
    array, finite = on_its_way(pixels, stream), on_its_way(are_finite, stream)
    if fields.kind is MediaKind.IMAGE:
        return Arriving(tuple(pixels.shape), lambda: ImageOutput(array(), bool(finite())))
    assert fps is not None
    heard = _heard(output, fields, audio_rate)
    return Arriving(tuple(pixels.shape), lambda: VideoOutput(array(), fps, heard, bool(finite())))


def _heard(output: Any, fields: OutputFields, audio_rate: int | None) -> AudioOutput | None:
    """Return the sound of a call's only video; None if it has none."""
    audio = getattr(output, fields.audio_field) if fields.audio_field else None
    return AudioOutput(_samples(audio[0]), audio_rate) if audio is not None and audio_rate is not None else None


def _samples(audio: Any) -> Array:
    """Return a sound as an array (channels, samples). The input may lack the channels.

    LTX-2 returns a tensor even with `output_type="np"`.
    """
    array = audio if isinstance(audio, np.ndarray) else audio.float().cpu().numpy()
    return np.atleast_2d(array)
