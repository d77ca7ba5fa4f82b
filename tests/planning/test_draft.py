"""The fold over the fields: each part puts into the plan what it decides, and `plan` knows none of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import cache_dit_serving.planning
from cache_dit_serving.config.settings import Limits, Settings
from cache_dit_serving.errors import InvalidRequest
from cache_dit_serving.planning import fields
from cache_dit_serving.planning.draft import Draft
from cache_dit_serving.planning.fields.field import RequestField
from cache_dit_serving.planning.model import PlannedModel
from cache_dit_serving.schemas.request import GenerateRequest
from tests.support.planned import planned, request
from tests.support.traits import FLUX

PLANNING = Path(cache_dit_serving.planning.__path__[0])


class Mirrored(RequestField):
    """A field that another would be beside those there are."""

    name = "priority"

    def check(self, request: GenerateRequest, model: PlannedModel) -> None:
        if request.priority == 3:
            raise InvalidRequest("no", param=self.name)

    def fill_in(self, draft: Draft, request: GenerateRequest) -> None:
        super().fill_in(draft, request)
        draft.arguments["mirrored"] = True
        draft.seeds = tuple(reversed(draft.seeds))


def test_a_part_alone_brings_a_field_into_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fields, "FIELDS", (*fields.FIELDS, Mirrored()))
    settings = Settings(limits=Limits(max_priority=5))
    found = planned(request(seed=1, num_images=2), FLUX, settings)
    assert [call.seed for call in found.calls] == [2, 1]
    assert found.call.arguments["mirrored"] is True
    with pytest.raises(InvalidRequest) as refused:
        planned(request(priority=3), FLUX, settings)
    assert refused.value.param == "priority"


@pytest.mark.parametrize("file", ["plan.py", "draft.py"])
def test_the_plan_imports_no_part(file: str) -> None:
    assert "planning.fields." not in (PLANNING / file).read_text(encoding="utf-8")


def test_default_steps_are_bounded_on_a_model_that_lets_none_be_asked() -> None:
    fixed = replace(FLUX, parameters=FLUX.parameters - {"num_inference_steps", "sigmas"})
    limits = Limits(max_num_inference_steps=FLUX.steps.default)
    assert planned(request(), fixed, Settings(limits=limits)).steps == FLUX.steps.default
    limits = Limits(max_num_inference_steps=FLUX.steps.default - 1)
    with pytest.raises(InvalidRequest, match=r"28 steps are more than the 27 this server takes"):
        planned(request(), fixed, Settings(limits=limits))
