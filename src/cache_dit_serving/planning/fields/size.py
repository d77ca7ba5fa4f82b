"""Fields `width` and `height`, and the sizes that a model takes."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence

from cache_dit_serving.config.settings import Limits
from cache_dit_serving.errors import InvalidRequest
from cache_dit_serving.planning.draft import Draft
from cache_dit_serving.planning.fields.field import PipelineField, RequestField, Schema
from cache_dit_serving.planning.model import PlannedModel
from cache_dit_serving.schemas.request import GenerateRequest


def _sides(limits: Limits, multiple: int) -> Sequence[int]:
    """Return the allowed widths and heights, pixels, in ascending order.

    Args:
        multiple: the model's grid, pixels; 1 before a model is loaded.
    """
    if limits.sizes is not None:
        return sorted(limits.sizes)
    least = -(-limits.min_side // multiple) * multiple
    return range(least, limits.max_side + 1, multiple)


def _adjusted(value: int, limits: Limits, multiple: int) -> int:
    """Round a side down to the grid, as cache_dit.serve did. A side below the minimum or above `max_side` is kept."""
    if limits.sizes is None and value > limits.max_side:
        return value  # above the operator's limit, which is not adjusted
    sides = _sides(limits, multiple)
    index = bisect_right(sides, value)
    return sides[index - 1] if index else value


def _check_side(name: str, value: int, limits: Limits, multiple: int) -> None:
    """Check one side.

    Raises:
        InvalidRequest: the model does not take this side; the message names the allowed ones.
    """
    if value in _sides(limits, multiple):
        return
    grid = f"multiples of {multiple} " if multiple > 1 else ""
    words = (
        ", ".join(map(str, limits.sizes))
        if limits.sizes is not None
        else f"{grid}from {limits.min_side} to {limits.max_side}"
    )
    raise InvalidRequest(f"{name} {value} is not a size this model takes; it takes {words}", param=name)


def fitting_size(width: int, height: int, model: PlannedModel, pixels: int | None = None) -> tuple[int, int]:
    """Return the output size for an input: its size, scaled down to the maximum area and rounded down to the grid.

    Args:
        pixels: maximum area, pixels; None: the area of the model's default size.
    """
    most = pixels or Width().default(model) * Height().default(model)
    scale = min(1.0, math.sqrt(most / (width * height)))
    sides = _sides(model.limits, model.traits.sizes.multiple)
    fitting = [sides[max(0, bisect_right(sides, round(side * scale)) - 1)] for side in (width, height)]
    return fitting[0], fitting[1]


class Side(PipelineField):
    """One side of an image, in pixels."""

    def schema(self, model: PlannedModel) -> Schema:
        limits = model.limits
        if limits.sizes is not None:
            return {"enum": list(limits.sizes)}
        return {"minimum": limits.min_side, "maximum": limits.max_side, "multipleOf": model.traits.sizes.multiple}

    def default(self, model: PlannedModel) -> int:
        return getattr(model.defaults, self.name) or getattr(model.traits.sizes, f"default_{self.name}")

    def check_limits(self, request: GenerateRequest, limits: Limits, *, tolerant: bool) -> None:
        asked: int | None = getattr(request, self.name)
        if asked is not None:
            _check_side(self.name, _adjusted(asked, limits, 1) if tolerant else asked, limits, 1)

    def adjusted(self, value: int, model: PlannedModel) -> int:
        return _adjusted(value, model.limits, model.traits.sizes.multiple)

    def check(self, request: GenerateRequest, model: PlannedModel) -> None:
        asked: int | None = getattr(request, self.name)
        if asked is not None:
            _check_side(self.name, asked, model.limits, model.traits.sizes.multiple)

    def fill_in(self, draft: Draft, request: GenerateRequest) -> None:
        super().fill_in(draft, request)
        setattr(draft, self.name, draft.arguments[self.name])
        if draft.model.traits.takes("max_area"):  # FluxKontext would rescale every size to its default area
            draft.arguments["max_area"] = draft.width * draft.height


class Width(Side):
    name = "width"


class Height(Side):
    name = "height"


FIELDS: tuple[RequestField, ...] = (Width(), Height())
