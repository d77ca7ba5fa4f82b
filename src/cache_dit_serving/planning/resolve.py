"""The task of a request: decided once, by the images and videos that it brings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from cache_dit_serving.caching.speed_settings import Speed
from cache_dit_serving.errors import InvalidRequest
from cache_dit_serving.planning.fields.inputs import FIELDS_OF_INPUTS
from cache_dit_serving.planning.model import PlannedModel
from cache_dit_serving.planning.tasks import SERVED_TASKS, TASKS, WORDS, Input, Task
from cache_dit_serving.schemas.request import GenerateRequest

OPTIONAL = frozenset({Input.LAST_IMAGE})
"""Inputs that no task requires and that select no task."""
NOUNS = {"mask_url": "mask", "video_url": "video"}
"""Nouns for errors, by field. Other fields hold an image."""


@dataclass(frozen=True)
class Resolved:
    """A request with the pipeline and the task that its inputs decide."""

    request: GenerateRequest
    task: Task
    model: PlannedModel
    """The loaded pipeline, or a sibling of the same weights."""
    family: PlannedModel
    """The loaded pipeline with its siblings."""

    def at_speed(self, speed: Speed) -> Resolved:
        """The same request at a named speed."""
        return self.with_fields({"speed": speed})

    def with_fields(self, fields: Mapping[str, Any]) -> Resolved:
        """Return the same request with other values of some fields, none of which decides the task."""
        return replace(self, request=self.request.model_copy(update=fields))


def resolve(request: GenerateRequest, family: PlannedModel) -> Resolved:
    """Return the pipeline and its task whose inputs are exactly those that the request sends.

    Raises:
        InvalidRequest: no task takes these inputs; the message names the missing or unsupported one.
    """
    if request.mask_url is not None and not request.image_urls:
        raise InvalidRequest("mask_url is a mask of a picture; send that in image_urls", param="mask_url")
    if request.last_image_url is not None:
        if not any(Input.LAST_IMAGE in variant.traits.brought for variant in family.variants):
            raise _not_taken("last_image_url", family)
        if not request.image_urls:
            raise InvalidRequest(
                "last_image_url ends what begins with image_urls; send that too", param="last_image_url"
            )
    brought = {each for each, field in FIELDS_OF_INPUTS.items() if getattr(request, field)} - OPTIONAL
    needs = []
    for variant in family.variants:
        for task in sorted(variant.traits.tasks & SERVED_TASKS):
            needs.append(TASKS[task].needs - WORDS)
            if needs[-1] == brought:
                return Resolved(request, task, variant, family)
    for each, field in FIELDS_OF_INPUTS.items():
        if each in brought and not any(each in needed for needed in needs):
            raise _not_taken(field, family)
    tasks = ", ".join(family.tasks)
    missing = min((needed - brought for needed in needs if needed > brought), key=len, default=None)
    if missing is None:
        fields = [field for each, field in FIELDS_OF_INPUTS.items() if each in brought]
        raise InvalidRequest(
            f"none of this model's tasks takes {' with '.join(fields)}; they are: {tasks}", param=fields[0]
        )
    fields = [field for each, field in FIELDS_OF_INPUTS.items() if each in missing]
    beside = " too" if brought else ""
    named = " and ".join(f"a {NOUNS.get(field, 'picture')} in {field}" for field in fields)
    raise InvalidRequest(f"this model needs {named}{beside}; its tasks are: {tasks}", param=fields[0])


def _not_taken(field: str, model: PlannedModel) -> InvalidRequest:
    sentence = f"{model.traits.pipeline_class} as loaded does not take {field}; its tasks are: {', '.join(model.tasks)}"
    return InvalidRequest(sentence, param=field, code="unsupported_field")
