"""Field `extra_args`: further arguments of the pipeline's call that a request may set; and `max_sequence_length`."""

from __future__ import annotations

import json
from difflib import get_close_matches
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from cache_dit_serving.errors import InvalidRequest
from cache_dit_serving.findings import cut, findings_of, not_supported
from cache_dit_serving.planning.fields.field import PipelineField, RequestField, Schema
from cache_dit_serving.planning.model import PlannedModel
from cache_dit_serving.schemas.request import GenerateRequest


class MaxSequenceLength(PipelineField):
    name = "max_sequence_length"

    def schema(self, model: PlannedModel) -> Schema:
        return {"maximum": _longest_sequence(model)}

    def default(self, model: PlannedModel) -> int | None:
        return model.defaults.max_sequence_length or model.traits.sequence.default

    def check(self, request: GenerateRequest, model: PlannedModel) -> None:
        asked, most = request.max_sequence_length, _longest_sequence(model)
        if asked is not None and asked > most:
            raise InvalidRequest(
                f"max_sequence_length is {asked:,}; this model takes at most {most:,} tokens", param=self.name
            )


def _longest_sequence(model: PlannedModel) -> int:
    return min(model.traits.sequence.most or model.limits.max_sequence_length, model.limits.max_sequence_length)


class ExtraArgs(RequestField):
    name = "extra_args"
    ignorable = False

    def accepted(self, model: PlannedModel) -> bool:
        return bool(_types(model))

    def asks_nothing(self, value: Any) -> bool:
        return value in (None, {})

    def schema(self, model: PlannedModel) -> Schema:
        properties = {name: _reader(kind).json_schema() for name, kind in _types(model).items()}
        return {"properties": properties, "additionalProperties": False}

    def arguments(self, request: GenerateRequest, model: PlannedModel) -> dict[str, Any]:
        given = request.extra_args or {}
        return {name: _read(name, value, model) for name, value in given.items()}

    def recorded(self, request: GenerateRequest, model: PlannedModel) -> dict[str, Any]:
        return {self.name: request.extra_args} if request.extra_args else {}


def _types(model: PlannedModel) -> dict[str, Any]:
    """Return the arguments that a request may set on this server, with their types."""
    open_to_requests = model.limits.extra_args
    return {
        name: kind
        for name, kind in model.traits.extra_arguments.items()
        if open_to_requests is None or name in open_to_requests
    }


def _read(name: str, value: Any, model: PlannedModel) -> Any:
    types, param = _types(model), f"extra_args.{cut(name)}"
    if name not in types:
        raise InvalidRequest(f"{param}: {_why_not(name, types, model)}", param=param, code="unsupported_field")
    text = json.dumps(value)
    most = model.limits.max_prompt_characters
    if len(text) > most:
        raise InvalidRequest(f"{param} has {len(text):,} characters; at most {most:,}", param=param, code="too_long")
    try:
        # Validated as JSON, in which a tuple is an array.
        return _reader(types[name]).validate_json(text, strict=True)
    except ValidationError as error:
        raise InvalidRequest(f"{param}: {findings_of(error)[0].message}", param=param) from None


def _reader(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind, config=ConfigDict(allow_inf_nan=False))


def _why_not(name: str, types: dict[str, Any], model: PlannedModel) -> str:
    if name in GenerateRequest.model_fields:
        return "is a field of the request by itself"
    if refusal := not_supported(name):
        return refusal
    if name in model.traits.extra_arguments:
        return "is not open to requests on this server"
    if model.traits.takes(name):
        return "is set by the server"
    close = get_close_matches(name, types, n=1)
    hint = f"did you mean {close[0]}?" if close else f"it takes: {', '.join(sorted(types))}"
    return f"{model.traits.pipeline_class} does not take it; {hint}"


FIELDS: tuple[RequestField, ...] = (MaxSequenceLength(), ExtraArgs())
