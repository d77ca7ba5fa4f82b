"""Planning of a request: one pure function from request to call, and its refusals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cache_dit_serving.errors import InvalidRequest
from cache_dit_serving.media.inputs import NO_INPUTS, Inputs
from cache_dit_serving.media.provenance import DigitalSource
from cache_dit_serving.planning.draft import Draft
from cache_dit_serving.planning.fields import FIELDS, accepted_fields
from cache_dit_serving.planning.fitting import fittings_of
from cache_dit_serving.planning.input_warnings import input_warnings
from cache_dit_serving.planning.inputs import input_arguments, with_size_of_inputs
from cache_dit_serving.planning.model import PlannedModel
from cache_dit_serving.planning.planned import Planned
from cache_dit_serving.planning.resolve import Resolved
from cache_dit_serving.planning.tasks import EDITING_TASKS
from cache_dit_serving.schemas.answers import RequestWarning
from cache_dit_serving.schemas.request import GenerateRequest


def plan(resolved: Resolved, inputs: Inputs = NO_INPUTS) -> Planned:
    """Plan a request on the pipeline of its task.

    Args:
        inputs: decoded images and video of the request.

    Raises:
        InvalidRequest: a field that the model cannot honour, a value out of bounds, or two contradicting fields.
        CacheNotEngaged: `cache.strict`, and the settings can reuse no step.
    """
    model, task = resolved.model, resolved.task
    request, warnings = _supported(resolved.request, model, resolved.family)
    request, idle_warnings = _effective(request, model)
    request, inputs, more_warnings = with_size_of_inputs(request, inputs, model)
    draft = Draft.of(model)
    for field in accepted_fields(model):
        field.fill_in(draft, request)
    draft.arguments |= input_arguments(request, inputs, model)
    draft.check_work()
    source = DigitalSource.EDITED if task in EDITING_TASKS else DigitalSource.GENERATED
    planned = Planned(
        draft.calls(),
        output=replace(draft.output, source=source, ingredients=inputs.ingredients),
        recorded=draft.recorded,
        inputs=inputs,
        fittings=fittings_of(task, draft.arguments, inputs, draft.fit, model.traits.pipeline_class),
        warnings=warnings + idle_warnings + more_warnings + tuple(draft.warnings),
    )
    planned.check_engages()
    return replace(planned, warnings=planned.warnings + input_warnings(planned))


def _supported(
    request: GenerateRequest, model: PlannedModel, family: PlannedModel
) -> tuple[GenerateRequest, tuple[RequestWarning, ...]]:
    """Remove fields that the model does not honour, and adjust values that it does not take. Warn of each.

    Raises:
        InvalidRequest: such a field has an effect elsewhere, and it may not be ignored on this server.
    """
    changed: dict[str, Any] = {}
    warnings = []
    for field in FIELDS:
        value = getattr(request, field.name)
        if value is None:
            continue
        if field.accepted(model):
            if model.tolerant and (taken := field.adjusted(value, model)) != value:
                changed[field.name] = taken
                message = f"{field.name} {value} is not one that this model takes; {taken} was used"
                warnings.append(RequestWarning(param=field.name, code="adjusted", message=message))
            continue
        changed[field.name] = None
        if field.asks_nothing(value):
            continue
        sentence = f"{model.traits.pipeline_class} as loaded does not take {field.name}{field.why_not(model)}"
        elsewhere = sorted(task for other in family.variants if field.accepted(other) for task in other.traits.tasks)
        if elsewhere:
            sentence = f"{field.name} is for {' and '.join(elsewhere)}; image_urls and mask_url decide the task"
        if not (model.tolerant and field.ignorable):
            names = ", ".join(accepted.name for accepted in accepted_fields(model))
            raise InvalidRequest(f"{sentence}; it takes: {names}", param=field.name, code="unsupported_field")
        message = f"{sentence}; it was ignored: leave it out"
        warnings.append(RequestWarning(param=field.name, code="unsupported_field", message=message))
    return request.model_copy(update=changed), tuple(warnings)


def _effective(request: GenerateRequest, model: PlannedModel) -> tuple[GenerateRequest, tuple[RequestWarning, ...]]:
    """Remove fields that other fields of the request disable. Warn of each.

    Raises:
        InvalidRequest: such a field is present, and it may not be ignored on this server.
    """
    warnings = []
    for field in accepted_fields(model):
        if getattr(request, field.name) is None or (reason := field.no_effect(request, model)) is None:
            continue
        if not model.tolerant:
            raise InvalidRequest(reason, param=field.name)
        request = request.model_copy(update={field.name: None})
        message = f"{field.name} was ignored: {reason}"
        warnings.append(RequestWarning(param=field.name, code="no_effect", message=message))
    return request, tuple(warnings)
