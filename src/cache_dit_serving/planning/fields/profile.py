"""Field `profile`: a torch profiler trace of a request."""

from __future__ import annotations

from typing import Any

from cache_dit_serving.planning.draft import Draft
from cache_dit_serving.planning.fields.field import RequestField
from cache_dit_serving.planning.model import AskedToProfile, PlannedModel
from cache_dit_serving.schemas.request import GenerateRequest


class Profile(RequestField):
    name = "profile"
    ignorable = False

    def accepted(self, model: PlannedModel) -> bool:
        return model.profiles != "none"

    def why_not(self, model: PlannedModel) -> str:
        return " (this server writes no traces; its operator can let requests ask for them)"

    def asks_nothing(self, value: Any) -> bool:
        return not value

    def default(self, model: PlannedModel) -> bool:
        return model.profiles == "all"

    def fill_in(self, draft: Draft, request: GenerateRequest) -> None:
        super().fill_in(draft, request)
        draft.profile = asked_to_profile(request, draft.model)


def asked_to_profile(request: GenerateRequest, model: PlannedModel) -> AskedToProfile:
    """Return the reason for tracing a request."""
    if request.profile:
        return AskedToProfile.BY_REQUEST
    by_operator = model.profiles == "all" and request.profile is None
    return AskedToProfile.BY_OPERATOR if by_operator else AskedToProfile.NO


FIELDS: tuple[RequestField, ...] = (Profile(),)
