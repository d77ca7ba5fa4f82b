"""Outputs of pipeline calls: their kind, and the conversion of a call's result to media values."""

from __future__ import annotations

import dataclasses
import inspect
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from cache_dit_serving.errors import LoadError
from cache_dit_serving.media.values import Array, Clip, Media, MediaKind, Picture, Sound

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


class OutputFields(NamedTuple):
    """Kind of a pipeline's output, and the fields of its output class that hold it."""

    kind: MediaKind
    field: str
    sound_field: str | None
    """Field of a clip's sound; None if the output class has none."""


KINDS = {
    "images": MediaKind.PICTURE,
    "image": MediaKind.PICTURE,
    "frames": MediaKind.CLIP,
    "video": MediaKind.CLIP,
    "audios": MediaKind.SOUND,
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
                sound = next((field for field in fields if field in ("audio", "sound")), None)
                return OutputFields(KINDS[found], found, sound)
    raise LoadError(f"{cls.__name__} makes neither pictures nor video nor audio, as far as its class says")


SOUND_CONFIGURATIONS = (("vae", "sampling_rate"), ("vae", "sample_rate"), ("vocoder", "output_sampling_rate"))
"""(component, key of its configuration) that may hold the rate of a pipeline's sound."""


def sound_rate_of(pipe: DiffusionPipeline) -> int | None:
    """Return the rate of a pipeline's sound, samples a second; None if the pipeline names no rate."""
    for name, key in SOUND_CONFIGURATIONS:
        config = getattr(getattr(pipe, name, None), "config", None) or {}
        if config.get(key) is not None:
            return int(config[key])
    return int(pipe.sample_rate) if hasattr(pipe, "sample_rate") else None


def media_of(output: Any, fields: OutputFields, *, fps: float | None, sound_rate: int | None) -> Media:
    """Return the only output of a call that was made with `output_type="np"`.

    Args:
        fps: frames per second of a clip; None for other kinds.
        sound_rate: samples a second of the sound; None if there is none.
    """
    array = getattr(output, fields.field)[0]
    if fields.kind is MediaKind.PICTURE:
        return Picture(array)
    if fields.kind is MediaKind.SOUND:
        assert sound_rate is not None
        return Sound(_samples(array), sound_rate)
    assert fps is not None
    sound = getattr(output, fields.sound_field) if fields.sound_field else None
    heard = Sound(_samples(sound[0]), sound_rate) if sound is not None and sound_rate is not None else None
    if array.dtype.kind in "iu":  # Cosmos, whose safety checker works on bytes
        array = (array / np.iinfo(array.dtype).max).astype(np.float32)
    return Clip(array, fps, heard)


def _samples(sound: Any) -> Array:
    """Return a sound as an array (channels, samples). The input may lack the channels.

    LTX-2 returns a tensor even with `output_type="np"`.
    """
    array = sound if isinstance(sound, np.ndarray) else sound.float().cpu().numpy()
    return np.atleast_2d(array)
