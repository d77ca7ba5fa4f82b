"""Fields of a request, one class each. Planning, `/capabilities` and the model's description iterate over them."""

from __future__ import annotations

from cache_dit_serving.planning.fields import (
    arguments,
    audio,
    cache,
    guidance,
    images,
    inputs,
    loras,
    output,
    priority,
    profile,
    prompt,
    sampling,
    size,
    steps,
    video,
)
from cache_dit_serving.planning.fields.field import PipelineField, RequestField
from cache_dit_serving.planning.model import PlannedModel

_MODULES = [
    prompt,
    size,
    steps,
    sampling,
    guidance,
    arguments,
    loras,
    inputs,
    video,
    audio,
    images,
    profile,
    output,
    cache,
    priority,
]
FIELDS: tuple[RequestField, ...] = tuple(field for module in _MODULES for field in module.FIELDS)
"""All fields, in the order in which they are checked and listed."""
PIPELINE_FIELDS = frozenset(field.name for field in FIELDS if isinstance(field, PipelineField))
"""Names of the fields that are arguments of the pipeline's call."""


def accepted_fields(model: PlannedModel) -> list[RequestField]:
    """Return the fields that a pipeline honours."""
    return [field for field in FIELDS if field.accepted(model)]


def offered_fields(model: PlannedModel) -> list[tuple[RequestField, PlannedModel]]:
    """Return each field that any of the model's pipelines honours, with the first that does."""
    found = [(field, next((each for each in model.variants if field.accepted(each)), None)) for field in FIELDS]
    return [(field, variant) for field, variant in found if variant is not None]
