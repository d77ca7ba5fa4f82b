"""Field `loras`."""

from __future__ import annotations

from typing import Any

from cache_dit_serving.errors import InvalidRequest
from cache_dit_serving.planning.draft import Draft
from cache_dit_serving.planning.fields.field import RequestField, Schema
from cache_dit_serving.planning.loras import LoraChoice, LoraTraits
from cache_dit_serving.planning.model import PlannedModel
from cache_dit_serving.schemas.request import GenerateRequest


class Loras(RequestField):
    name = "loras"
    ignorable = False

    def accepted(self, model: PlannedModel) -> bool:
        return bool(_choosable(model))

    def why_not(self, model: PlannedModel) -> str:
        return " (those of this server are fused)" if model.loras else " (this server has none)"

    def schema(self, model: PlannedModel) -> Schema:
        variants = [
            {
                "type": "object",
                "properties": {
                    "name": {"const": lora.name},
                    "scale": {"type": "number", "minimum": -lora.max_scale, "maximum": lora.max_scale},
                },
                "required": ["name"],
            }
            for lora in _choosable(model).values()
        ]
        return {"items": {"anyOf": variants}, "maxItems": len(variants)}

    def default(self, model: PlannedModel) -> list[dict[str, Any]]:
        return [choice._asdict() for choice in _defaults(model)]

    def recorded(self, request: GenerateRequest, model: PlannedModel) -> dict[str, Any]:
        return {self.name: [choice._asdict() for choice in loras_of(request, model)]} if _choosable(model) else {}

    def fill_in(self, draft: Draft, request: GenerateRequest) -> None:
        super().fill_in(draft, request)
        draft.loras = loras_of(request, draft.model)


def loras_of(request: GenerateRequest, model: PlannedModel) -> tuple[LoraChoice, ...]:
    """Return the LoRAs to draw with: the request's in its order, else the configuration's. Scale 0 is left out.

    Raises:
        InvalidRequest: a name is unknown or repeated, a scale is out of bounds, or too many are loaded on demand.
    """
    if request.loras is None:
        return _defaults(model)
    there = _choosable(model)
    chosen: list[LoraChoice] = []
    for index, asked in enumerate(request.loras):
        param = f"loras.{index}"
        lora = there.get(asked.name)
        if lora is None:
            raise InvalidRequest(
                f"{param}.name: there is no LoRA of this name to choose; there is: {', '.join(there)}", param=param
            )
        if any(asked.name == earlier.name for earlier in chosen):
            raise InvalidRequest(f"{param}.name: {asked.name} is named twice", param=param)
        scale = (lora.scale or 1.0) if asked.scale is None else asked.scale
        if abs(scale) > lora.max_scale:
            raise InvalidRequest(
                f"{param}.scale is {scale:g}; {lora.name} takes {-lora.max_scale:g} to {lora.max_scale:g}", param=param
            )
        chosen.append(LoraChoice(lora.name, scale))
    on_demand = [choice.name for choice in chosen if choice.scale and there[choice.name].contents is None]
    most = model.limits.max_loras
    if len(on_demand) > most:
        raise InvalidRequest(
            f"loras names {len(on_demand)} LoRAs of the server's folder; it keeps at most {most} loaded", param="loras"
        )
    # A scale of 0 adds nothing and costs time.
    return tuple(choice for choice in chosen if choice.scale)


def _choosable(model: PlannedModel) -> dict[str, LoraTraits]:
    return {lora.name: lora for lora in model.loras if not lora.fused}


def _defaults(model: PlannedModel) -> tuple[LoraChoice, ...]:
    return tuple(lora.choice for lora in _choosable(model).values() if lora.scale)


FIELDS: tuple[RequestField, ...] = (Loras(),)
