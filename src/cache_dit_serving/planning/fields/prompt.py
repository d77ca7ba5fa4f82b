"""Fields `prompt` and `class_label`."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from cache_dit_serving.config.settings import Limits
from cache_dit_serving.errors import InvalidRequest
from cache_dit_serving.planning.fields.field import PipelineField, RequestField, Schema, check_length
from cache_dit_serving.planning.model import PlannedModel
from cache_dit_serving.planning.traits import ClassTraits
from cache_dit_serving.schemas.request import GenerateRequest


class Prompt(PipelineField):
    name = "prompt"

    def schema(self, model: PlannedModel) -> Schema:
        return {"maxLength": model.limits.max_prompt_characters}

    def check_limits(self, request: GenerateRequest, limits: Limits, *, tolerant: bool) -> None:
        check_length("prompt", request.prompt, limits)

    def check(self, request: GenerateRequest, model: PlannedModel) -> None:
        if request.prompt is None:
            raise InvalidRequest("prompt is missing; say what to draw", param="prompt")
        check_length("prompt", request.prompt, model.limits)
        if not request.prompt.strip():
            raise InvalidRequest("prompt is empty; say what to draw", param="prompt")


class ClassLabel(RequestField):
    name = "class_label"
    ignorable = False

    def accepted(self, model: PlannedModel) -> bool:
        return model.traits.classes is not None

    def schema(self, model: PlannedModel) -> Schema:
        classes = _classes(model)
        by_number: Schema = {"type": "integer", "minimum": 0, "maximum": classes.count - 1}
        by_name: Schema = {"type": "string", "enum": list(classes.names)}
        return {"anyOf": [by_number, by_name] if classes.names else [by_number]}

    def arguments(self, request: GenerateRequest, model: PlannedModel) -> dict[str, Any]:
        return {_classes(model).parameter: [self._number(request, model)]}

    def recorded(self, request: GenerateRequest, model: PlannedModel) -> dict[str, Any]:
        return {self.name: self._number(request, model)}

    def _number(self, request: GenerateRequest, model: PlannedModel) -> int:
        label, classes = request.class_label, _classes(model)
        if label is None:
            raise InvalidRequest("class_label is missing; say which class to draw", param=self.name)
        if isinstance(label, str):
            number = classes.names.get(label)
            if number is None:
                raise InvalidRequest(_unknown(label, classes), param=self.name)
            return number
        if label >= classes.count:
            raise InvalidRequest(
                f"class_label is {label:,}; this model draws the classes 0 to {classes.count - 1}", param=self.name
            )
        return label


def _classes(model: PlannedModel) -> ClassTraits:
    assert model.traits.classes is not None
    return model.traits.classes


def _unknown(label: str, classes: ClassTraits) -> str:
    if not classes.names:
        return f"this model's classes have no names; send a number from 0 to {classes.count - 1}"
    close = get_close_matches(label, classes.names, n=3)
    hint = f"the nearest are {', '.join(close)}" if close else "GET /capabilities lists them"
    return f"class_label {label!r} is not a class of this model; {hint}"


FIELDS: tuple[RequestField, ...] = (Prompt(), ClassLabel())
