"""Fields `scheduler` and `shift`."""

from __future__ import annotations

from typing import Any

from cache_dit_serving.config.schedulers import OWN
from cache_dit_serving.errors import InvalidRequest
from cache_dit_serving.planning.draft import Draft
from cache_dit_serving.planning.fields.field import RequestField, Schema
from cache_dit_serving.planning.model import PlannedModel
from cache_dit_serving.planning.samplers import Sampler, SamplerChoice, SamplerTraits
from cache_dit_serving.schemas.request import GenerateRequest

OWN_SCHEDULER = (None, OWN, "auto")
"""Values of `scheduler` that stand for the model's own."""


class Scheduler(RequestField):
    name = "scheduler"
    ignorable = False

    def asks_nothing(self, value: Any) -> bool:
        return value in OWN_SCHEDULER

    def accepted(self, model: PlannedModel) -> bool:
        return model.traits.samplers is not None

    def schema(self, model: PlannedModel) -> Schema:
        return {"enum": list(_samplers(model).by_name)}

    def default(self, model: PlannedModel) -> str:
        return _samplers(model).own.name

    def check(self, request: GenerateRequest, model: PlannedModel) -> None:
        sampler_of(request, model)

    def recorded(self, request: GenerateRequest, model: PlannedModel) -> dict[str, Any]:
        return {self.name: sampler_of(request, model).name}

    def fill_in(self, draft: Draft, request: GenerateRequest) -> None:
        super().fill_in(draft, request)
        shift = None if draft.model.traits.takes("shift") else request.shift
        draft.sampler = SamplerChoice(sampler_of(request, draft.model).name, shift)


class Shift(RequestField):
    """A shift of the scheduler, or of a pipeline whose call takes it (ACE-Step)."""

    name = "shift"
    ignorable = False

    def accepted(self, model: PlannedModel) -> bool:
        if model.traits.takes(self.name):
            return True
        samplers = model.traits.samplers
        return samplers is not None and any(sampler.takes_shift for sampler in samplers.by_name.values())

    def why_not(self, model: PlannedModel) -> str:
        return " (no scheduler with a shift is among its model.schedulers)"

    def default(self, model: PlannedModel) -> float | None:
        return None if model.traits.takes(self.name) else _samplers(model).own.shift

    def check(self, request: GenerateRequest, model: PlannedModel) -> None:
        if request.shift is None or model.traits.takes(self.name) or sampler_of(request, model).takes_shift:
            return
        taking = [each.name for each in _samplers(model).by_name.values() if each.takes_shift]
        raise InvalidRequest(
            f"shift is not open to requests with scheduler {sampler_of(request, model).name}; it is with: "
            f"{', '.join(taking)}",
            param=self.name,
        )

    def arguments(self, request: GenerateRequest, model: PlannedModel) -> dict[str, Any]:
        asked = request.shift
        return {} if asked is None or not model.traits.takes(self.name) else {self.name: asked}

    def recorded(self, request: GenerateRequest, model: PlannedModel) -> dict[str, Any]:
        return {} if request.shift is None else {self.name: request.shift}


def sampler_of(request: GenerateRequest, model: PlannedModel) -> Sampler:
    """Return the scheduler of a request: the one that it names, else the model's own.

    Raises:
        InvalidRequest: the name is not offered; the message has the names that are.
    """
    samplers = _samplers(model)
    if request.scheduler in OWN_SCHEDULER:
        return samplers.own
    if (chosen := samplers.by_name.get(request.scheduler)) is not None:
        return chosen
    if (reason := samplers.refused.get(request.scheduler)) is not None:
        raise InvalidRequest(f"scheduler: {reason}; {_remedy(samplers)}", param="scheduler")
    raise InvalidRequest(
        f"scheduler: this server offers no scheduler of this name for {model.traits.pipeline_class}; "
        f"{_remedy(samplers)}",
        param="scheduler",
    )


def _remedy(samplers: SamplerTraits) -> str:
    others = "" if samplers.offered else " (its operator can offer more in model.schedulers)"
    return f"it has: {', '.join(samplers.by_name)}{others}"


def _samplers(model: PlannedModel) -> SamplerTraits:
    assert model.traits.samplers is not None
    return model.traits.samplers


FIELDS: tuple[RequestField, ...] = (Scheduler(), Shift())
