"""Width and height, and the one rule of which the model takes."""

from __future__ import annotations

from typing import Any

from cache_dit_serving.errors import InvalidRequest
from cache_dit_serving.planning.fields.field import PipelineField, Schema
from cache_dit_serving.planning.model import PlannedModel
from cache_dit_serving.schemas.request import GenerateRequest


class Side(PipelineField):
    """One side of an image, in pixels."""

    def schema(self, model: PlannedModel) -> Schema:
        limits = model.limits
        if limits.sizes is not None:
            return {"enum": list(limits.sizes)}
        return {"minimum": limits.min_side, "maximum": limits.max_side, "multipleOf": model.traits.sizes.multiple}

    def default(self, model: PlannedModel) -> int:
        return getattr(model.defaults, self.name) or model.traits.sizes.default_side

    def adjusted(self, value: int, model: PlannedModel) -> int:
        """Rounded down to the grid, as cache_dit.serve did; as it is where nothing on the grid is as small."""
        limits, multiple = model.limits, model.traits.sizes.multiple
        if limits.sizes is not None:
            return max((side for side in limits.sizes if side <= value), default=value)
        down = value // multiple * multiple
        return down if limits.min_side <= down and value <= limits.max_side else value

    def arguments(self, request: GenerateRequest, model: PlannedModel) -> dict[str, Any]:
        asked: int | None = getattr(request, self.name)
        if asked is None:
            return {self.name: self.default(model)}
        limits, multiple = model.limits, model.traits.sizes.multiple
        if limits.sizes is not None:
            taken, words = asked in limits.sizes, ", ".join(map(str, limits.sizes))
        else:
            taken = limits.min_side <= asked <= limits.max_side and asked % multiple == 0
            words = f"multiples of {multiple} from {limits.min_side} to {limits.max_side}"
        if not taken:
            sentence = f"{self.name} {asked} is not a size this model takes; it takes {words}"
            raise InvalidRequest(sentence, param=self.name)
        return {self.name: asked}


class Width(Side):
    name = "width"


class Height(Side):
    name = "height"
