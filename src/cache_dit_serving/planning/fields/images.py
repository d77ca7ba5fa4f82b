"""Fields `seed` and `num_images`."""

from __future__ import annotations

import secrets
from typing import Any

from cache_dit_serving.config.settings import Limits
from cache_dit_serving.errors import InvalidRequest
from cache_dit_serving.media.values import MediaKind
from cache_dit_serving.planning.draft import Draft
from cache_dit_serving.planning.fields.field import RequestField, Schema
from cache_dit_serving.planning.model import PlannedModel
from cache_dit_serving.schemas.request import MAX_SEED, GenerateRequest

RANDOM_SEEDS = 2**32


class Seed(RequestField):
    name = "seed"

    def fill_in(self, draft: Draft, request: GenerateRequest) -> None:
        super().fill_in(draft, request)
        draft.seeds = seeds_of(request, draft.model)


class NumImages(RequestField):
    name = "num_images"
    makes = MediaKind.IMAGE

    def asks_nothing(self, value: Any) -> bool:
        return value in (None, 1)

    def why_not(self, model: PlannedModel) -> str:
        return f" (it makes one {model.traits.makes} a request)"

    def schema(self, model: PlannedModel) -> Schema:
        return {"maximum": model.limits.max_num_images}

    def check_limits(self, request: GenerateRequest, limits: Limits, *, tolerant: bool) -> None:
        _check_number(request.num_images or 1, limits)

    def default(self, model: PlannedModel) -> int:
        return 1


def _check_number(count: int, limits: Limits) -> None:
    most = limits.max_num_images
    if count > most:
        raise InvalidRequest(
            f"num_images is {count:,}; this server draws at most {most} in one request", param="num_images"
        )


def seeds_of(request: GenerateRequest, model: PlannedModel) -> tuple[int, ...]:
    """Return consecutive seeds, one per image. The first is the request's, or random.

    Raises:
        InvalidRequest: more images than the server draws, or the last seed exceeds `MAX_SEED`.
    """
    count = request.num_images or 1
    _check_number(count, model.limits)
    first = secrets.randbelow(RANDOM_SEEDS) if request.seed is None else request.seed
    if first + count - 1 > MAX_SEED:
        raise InvalidRequest(f"seed + num_images - 1 must not pass {MAX_SEED}", param="seed")
    return tuple(range(first, first + count))


FIELDS: tuple[RequestField, ...] = (Seed(), NumImages())
