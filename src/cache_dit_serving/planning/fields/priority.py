"""Field `priority`."""

from __future__ import annotations

from typing import Any

from cache_dit_serving.errors import InvalidRequest
from cache_dit_serving.planning.fields.field import RequestField, Schema
from cache_dit_serving.planning.model import PlannedModel
from cache_dit_serving.schemas.request import GenerateRequest


class Priority(RequestField):
    name = "priority"

    def accepted(self, model: PlannedModel) -> bool:
        return model.limits.max_priority > 0

    def why_not(self, model: PlannedModel) -> str:
        return " (all requests are equal on this server, by limits.max_priority)"

    def asks_nothing(self, value: Any) -> bool:
        return not value

    def schema(self, model: PlannedModel) -> Schema:
        return {"maximum": model.limits.max_priority}

    def default(self, model: PlannedModel) -> int:
        return 0

    def adjusted(self, value: Any, model: PlannedModel) -> int:
        return min(int(value), model.limits.max_priority)

    def check(self, request: GenerateRequest, model: PlannedModel) -> None:
        check_priority(request.priority or 0, model.limits.max_priority)


def check_priority(priority: int, most: int) -> None:
    """Refuse a priority above the server's greatest, `limits.max_priority`.

    Raises:
        InvalidRequest: it is greater.
    """
    if priority > most:
        remedy = "" if most else ": all requests are equal here, by limits.max_priority"
        raise InvalidRequest(f"priority {priority} is more than this server's {most}{remedy}", param="priority")


FIELDS: tuple[RequestField, ...] = (Priority(),)
