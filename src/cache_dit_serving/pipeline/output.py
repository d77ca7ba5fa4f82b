"""What a pipeline's call returns: which kind of output, and how it is taken out."""

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
    """Where a pipeline's answer holds what it made."""

    kind: MediaKind
    field: str
    sound_field: str | None
    """Of the sound that belongs to a clip."""


KINDS = {
    "images": MediaKind.PICTURE,
    "image": MediaKind.PICTURE,
    "frames": MediaKind.CLIP,
    "video": MediaKind.CLIP,
    "audios": MediaKind.SOUND,
}
"""By the field of an output class."""


def output_of(cls: type[DiffusionPipeline]) -> OutputFields:
    """What a pipeline of this class makes, by the output class that its call names.

    Raises:
        LoadError: its call names none, or one with fields that this server does not know.
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
"""Component and key of its configuration, where pipelines say at which rate their sound comes."""


def sound_rate_of(pipe: DiffusionPipeline) -> int | None:
    """Samples a second of the sound that a pipeline makes; None where it names no rate."""
    for name, key in SOUND_CONFIGURATIONS:
        config = getattr(getattr(pipe, name, None), "config", None) or {}
        if config.get(key) is not None:
            return int(config[key])
    return int(pipe.sample_rate) if hasattr(pipe, "sample_rate") else None


def media_of(output: Any, fields: OutputFields, *, fps: float | None, sound_rate: int | None) -> Media:
    """The first and only output of a call that was asked for numpy arrays.

    Args:
        fps: of a clip; None for other kinds.
        sound_rate: of what is heard, samples a second; None where nothing is.
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
    if array.dtype.kind in "iu":  # Cosmos, whose safety checker wants bytes
        array = (array / np.iinfo(array.dtype).max).astype(np.float32)
    return Clip(array, fps, heard)


def _samples(sound: Any) -> Array:
    """(channels, samples) of an array or tensor that may lack the channels; LTX-2's is a tensor, whatever is asked."""
    array = sound if isinstance(sound, np.ndarray) else sound.float().cpu().numpy()
    return np.atleast_2d(array)
