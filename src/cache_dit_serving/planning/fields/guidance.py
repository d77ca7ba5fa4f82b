"""Guidance: fields of the scales and of the negative prompt."""

from __future__ import annotations

import math
from typing import Any

from cache_dit_serving.config.settings import Limits
from cache_dit_serving.errors import InvalidRequest
from cache_dit_serving.planning.fields.field import PipelineField, RequestField, Schema, check_length
from cache_dit_serving.planning.model import PlannedModel
from cache_dit_serving.schemas.request import GenerateRequest


def _scale(name: str, request: GenerateRequest, model: PlannedModel, own: float | None) -> float | None:
    """Return the effective scale: the request's, else the configuration's, else `own`, the pipeline's default."""
    asked = getattr(request, name)
    if asked is not None:
        return float(asked)
    configured = getattr(model.defaults, name)
    return configured if configured is not None and model.traits.takes(name) else own


class GuidanceScale(PipelineField):
    name = "guidance_scale"

    def accepted(self, model: PlannedModel) -> bool:
        return super().accepted(model) and model.traits.guidance.honours_scale

    def why_not(self, model: PlannedModel) -> str:
        return " (its weights have no guidance embedding)" if super().accepted(model) else ""


class TrueCfgScale(PipelineField):
    name = "true_cfg_scale"

    def asks_nothing(self, value: Any) -> bool:
        return value in (None, 1)

    def adjusted(self, value: Any, model: PlannedModel) -> float:
        """Raise a value below 1 to 1. Neither guides."""
        return max(1.0, float(value))

    def no_effect(self, request: GenerateRequest, model: PlannedModel) -> str | None:
        if (request.true_cfg_scale or 0.0) <= 1 or _negative_prompt(request, model) is not None:
            return None
        return (
            "true_cfg_scale above 1 has no effect on this model without negative_prompt; send both "
            '("negative_prompt": " " for none in particular)'
        )

    def check(self, request: GenerateRequest, model: PlannedModel) -> None:
        asked = request.true_cfg_scale
        if asked is not None and asked < 1:
            raise InvalidRequest(
                "true_cfg_scale below 1 has no effect on this model; leave it out, or send 1 for no guidance",
                param="true_cfg_scale",
            )


class NegativePrompt(PipelineField):
    name = "negative_prompt"

    def accepted(self, model: PlannedModel) -> bool:
        return super().accepted(model) and (
            model.traits.takes("true_cfg_scale") or math.isfinite(model.traits.guidance.guides_above)
        )

    def why_not(self, model: PlannedModel) -> str:
        return " (it never guides)" if super().accepted(model) else ""

    def asks_nothing(self, value: Any) -> bool:
        return value in (None, "")

    def schema(self, model: PlannedModel) -> Schema:
        return {"maxLength": model.limits.max_prompt_characters}

    def check_limits(self, request: GenerateRequest, limits: Limits, *, tolerant: bool) -> None:
        check_length("negative_prompt", request.negative_prompt, limits)

    def check(self, request: GenerateRequest, model: PlannedModel) -> None:
        check_length("negative_prompt", request.negative_prompt, model.limits)

    def arguments(self, request: GenerateRequest, model: PlannedModel) -> dict[str, Any]:
        arguments = super().arguments(request, model)
        needed = {self.name: ""} if model.traits.guidance.needs_negative_prompt else {}
        return needed | arguments

    def no_effect(self, request: GenerateRequest, model: PlannedModel) -> str | None:
        traits, guidance = model.traits, model.traits.guidance
        if not request.negative_prompt:
            return None
        if traits.takes("true_cfg_scale"):
            scale = _scale("true_cfg_scale", request, model, guidance.default_true_cfg_scale)
            if (scale or 0.0) <= 1:
                return "negative_prompt has no effect on this model without true_cfg_scale above 1; send both"
            return None
        scale = _scale("guidance_scale", request, model, guidance.default_scale)
        if scale is not None and scale <= guidance.guides_above:
            return (
                f"negative_prompt has no effect with guidance_scale {scale:g}; "
                f"send a guidance_scale above {guidance.guides_above:g} with it"
            )
        return None


def _negative_prompt(request: GenerateRequest, model: PlannedModel) -> str | None:
    asked = request.negative_prompt
    return asked if asked is not None else model.defaults.negative_prompt


FIELDS: tuple[RequestField, ...] = (NegativePrompt(), GuidanceScale(), TrueCfgScale())
