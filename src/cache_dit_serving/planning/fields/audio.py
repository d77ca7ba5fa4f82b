"""Field `audio_length_s`."""

from __future__ import annotations

from typing import Any

from cache_dit_serving.errors import InvalidRequest
from cache_dit_serving.media.values import MediaKind
from cache_dit_serving.planning.draft import Draft
from cache_dit_serving.planning.fields.field import PipelineField, RequestField, Schema
from cache_dit_serving.planning.model import PlannedModel
from cache_dit_serving.planning.traits import AudioTraits
from cache_dit_serving.schemas.request import LEAST_AUDIO_S, GenerateRequest


class AudioLength(PipelineField):
    name = "audio_length_s"
    makes = MediaKind.AUDIO
    ignorable = False

    def accepted(self, model: PlannedModel) -> bool:
        return model.traits.audio is not None

    def schema(self, model: PlannedModel) -> Schema:
        return {"minimum": LEAST_AUDIO_S, "maximum": _most(model)}

    def default(self, model: PlannedModel) -> float:
        return model.defaults.audio_length_s or min(_audio(model).default_length_s, model.limits.max_audio_s)

    def check(self, request: GenerateRequest, model: PlannedModel) -> None:
        length, most = audio_length(request, model), _most(model)
        if length > most:
            raise InvalidRequest(
                f"audio_length_s is {length:g}; this server makes at most {most:g} s on this model", param=self.name
            )

    def arguments(self, request: GenerateRequest, model: PlannedModel) -> dict[str, Any]:
        return {_audio(model).length_parameter: audio_length(request, model)}

    def recorded(self, request: GenerateRequest, model: PlannedModel) -> dict[str, Any]:
        return {self.name: audio_length(request, model)}

    def fill_in(self, draft: Draft, request: GenerateRequest) -> None:
        super().fill_in(draft, request)
        draft.samples = samples_made(request, draft.model)


def audio_length(request: GenerateRequest, model: PlannedModel) -> float:
    """Return the length of a request's sound, seconds."""
    return request.audio_length_s if request.audio_length_s is not None else AudioLength().default(model)


def samples_made(request: GenerateRequest, model: PlannedModel) -> int:
    """Return the number of samples that the model makes for a request. The time of a step grows with it."""
    audio = _audio(model)
    whole = audio.most_length_s if audio.always_whole else None
    return max(1, round((whole or audio_length(request, model)) * audio.rate))


def _most(model: PlannedModel) -> float:
    return min(_audio(model).most_length_s or model.limits.max_audio_s, model.limits.max_audio_s)


def _audio(model: PlannedModel) -> AudioTraits:
    assert model.traits.audio is not None
    return model.traits.audio


FIELDS: tuple[RequestField, ...] = (AudioLength(),)
