"""Fields `speed`, `cache` and `deadline_s`. :mod:`caching.speeds` chooses the settings from them."""

from __future__ import annotations

from cache_dit_serving.caching.speeds import CUSTOM
from cache_dit_serving.planning.draft import Draft
from cache_dit_serving.planning.fields.field import RequestField, Schema
from cache_dit_serving.planning.model import PlannedModel
from cache_dit_serving.schemas.request import GenerateRequest


class SpeedField(RequestField):
    name = "speed"

    def schema(self, model: PlannedModel) -> Schema:
        return {"enum": list(model.speeds.allowed)}

    def default(self, model: PlannedModel) -> str | None:
        speed = model.speeds.default_speed
        return None if speed == CUSTOM else speed

    def fill_in(self, draft: Draft, request: GenerateRequest) -> None:
        draft.speed = request.speed


class CacheField(RequestField):
    name = "cache"

    def fill_in(self, draft: Draft, request: GenerateRequest) -> None:
        draft.cache = request.cache


class DeadlineField(RequestField):
    name = "deadline_s"


FIELDS: tuple[RequestField, ...] = (SpeedField(), CacheField(), DeadlineField())
