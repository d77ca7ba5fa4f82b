"""Pictures that a request brings, and how far it leaves them."""

from __future__ import annotations

from cache_dit_serving.planning.fields.field import PipelineField, RequestField, Schema
from cache_dit_serving.planning.model import PlannedModel
from cache_dit_serving.schemas.request import GenerateRequest


class ImageUrls(RequestField):
    """The pictures themselves are read before planning, and :func:`planning.plan.plan` gives them to the call."""

    name = "image_urls"
    ignorable = False

    def accepted(self, model: PlannedModel) -> bool:
        return model.traits.pictures is not None

    def schema(self, model: PlannedModel) -> Schema:
        return {} if model.traits.pictures and model.traits.pictures.several else {"maxItems": 1}


class MaskUrl(RequestField):
    """Likewise."""

    name = "mask_url"
    ignorable = False

    def accepted(self, model: PlannedModel) -> bool:
        return model.traits.pictures is not None and model.traits.pictures.mask_parameter is not None


class Strength(PipelineField):
    name = "strength"
    ignorable = False

    def accepted(self, model: PlannedModel) -> bool:
        return model.traits.strength is not None

    def default(self, model: PlannedModel) -> float:
        assert model.traits.strength is not None
        return model.defaults.strength or model.traits.strength.default


def steps_run(request: GenerateRequest, model: PlannedModel, count: int) -> int:
    """Denoising steps that run of a schedule of `count`: strength leaves the first ones out."""
    if model.traits.strength is None:
        return count
    strength = request.strength if request.strength is not None else Strength().default(model)
    return model.traits.strength.steps_run(count, strength)
