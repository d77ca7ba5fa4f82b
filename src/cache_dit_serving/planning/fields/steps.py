"""Fields `num_inference_steps` and `sigmas`."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from cache_dit_serving.config.settings import Limits
from cache_dit_serving.errors import InvalidRequest
from cache_dit_serving.planning.draft import Draft
from cache_dit_serving.planning.fields.field import PipelineField, RequestField, Schema
from cache_dit_serving.planning.fields.sampling import sampler_of
from cache_dit_serving.planning.model import PlannedModel
from cache_dit_serving.schemas.request import GenerateRequest


def step_count(request: GenerateRequest, model: PlannedModel) -> int:
    """Return the denoising steps of a request's schedule. `sigmas` decide if they are sent.

    Raises:
        InvalidRequest: more steps than the server takes, or fewer than the scheduler needs.
    """
    asked = _asked(request)
    usual = model.step_count_at(request.speed, request.cache)
    count, param = asked if asked is not None else (usual, "num_inference_steps")
    _check_most(count, param, model.limits)
    if count < (least := _least(request, model)):
        raise InvalidRequest(f"this model's scheduler needs at least {least} steps", param=param)
    return count


def _least(request: GenerateRequest, model: PlannedModel) -> int:
    """Return the minimum number of steps of the request's scheduler."""
    if model.traits.samplers is None:
        return model.traits.steps.least
    return sampler_of(request, model).least_steps


def _asked(request: GenerateRequest) -> tuple[int, str] | None:
    """Return the requested number of steps and the field that gave it; None without either field."""
    if request.sigmas is not None:
        return len(request.sigmas), "sigmas"
    return (request.num_inference_steps, "num_inference_steps") if request.num_inference_steps else None


def _check_most(count: int, param: str, limits: Limits) -> None:
    most = limits.max_num_inference_steps
    if count > most:
        raise InvalidRequest(f"{count:,} steps are more than the {most:,} this server takes", param=param)


class NumInferenceSteps(PipelineField):
    name = "num_inference_steps"

    def no_effect(self, request: GenerateRequest, model: PlannedModel) -> str | None:
        sigmas, asked = request.sigmas, request.num_inference_steps
        if sigmas is None or asked == len(sigmas):
            return None
        return (
            f"num_inference_steps {asked} has no effect beside sigmas, which hold {len(sigmas)} noise levels, one a "
            "step; leave one of them out or make them agree"
        )

    def schema(self, model: PlannedModel) -> Schema:
        return {"minimum": model.traits.steps.least, "maximum": model.limits.max_num_inference_steps}

    def check_limits(self, request: GenerateRequest, limits: Limits, *, tolerant: bool) -> None:
        if (asked := _asked(request)) is not None:
            _check_most(*asked, limits)

    def default(self, model: PlannedModel) -> int:
        return model.default_step_count

    def arguments(self, request: GenerateRequest, model: PlannedModel) -> dict[str, Any]:
        return {self.name: step_count(request, model)}

    def fill_in(self, draft: Draft, request: GenerateRequest) -> None:
        super().fill_in(draft, request)
        draft.steps = step_count(request, draft.model)


class Sigmas(PipelineField):
    name = "sigmas"

    def schema(self, model: PlannedModel) -> Schema:
        bounds: Schema = {"minItems": model.traits.steps.least, "maxItems": model.limits.max_num_inference_steps}
        if model.traits.steps.flow_matching:
            bounds["items"] = {"type": "number", "exclusiveMinimum": 0, "maximum": 1}
        return bounds

    def check(self, request: GenerateRequest, model: PlannedModel) -> None:
        sigmas = request.sigmas
        if sigmas is None:
            return
        if model.traits.samplers is not None and not sampler_of(request, model).takes_sigmas:
            raise InvalidRequest(
                f"scheduler {sampler_of(request, model).name} spaces the noise levels itself and takes no sigmas; "
                "leave one of them out",
                param="sigmas",
            )
        if any(later >= earlier for earlier, later in pairwise(sigmas)):
            raise InvalidRequest("sigmas must decrease from each noise level to the next", param="sigmas")
        if model.traits.steps.flow_matching and not (sigmas[0] <= 1 and sigmas[-1] > 0):
            raise InvalidRequest("sigmas of this model lie above 0 and at most at 1", param="sigmas")

    def arguments(self, request: GenerateRequest, model: PlannedModel) -> dict[str, Any]:
        return {} if request.sigmas is None else {self.name: list(request.sigmas)}

    def fill_in(self, draft: Draft, request: GenerateRequest) -> None:
        super().fill_in(draft, request)
        draft.steps = step_count(request, draft.model)


FIELDS: tuple[RequestField, ...] = (NumInferenceSteps(), Sigmas())
