"""What to draw."""

from __future__ import annotations

from typing import Any

from cache_dit_serving.errors import InvalidRequest
from cache_dit_serving.planning.fields.field import PipelineField, Schema, check_length
from cache_dit_serving.planning.model import PlannedModel
from cache_dit_serving.schemas.request import GenerateRequest


class Prompt(PipelineField):
    name = "prompt"

    def schema(self, model: PlannedModel) -> Schema:
        return {"maxLength": model.limits.max_prompt_characters}

    def arguments(self, request: GenerateRequest, model: PlannedModel) -> dict[str, Any]:
        check_length("prompt", request.prompt, model)
        if not request.prompt.strip():
            raise InvalidRequest("prompt is empty; say what to draw", param="prompt")
        return {"prompt": request.prompt}
