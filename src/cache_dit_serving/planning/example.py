"""The one request that is made up here: for trials, the warm-up and estimates."""

from __future__ import annotations

from typing import Any

from cache_dit_serving.schemas.request import GenerateRequest


def example_request(**fields: Any) -> GenerateRequest:
    """The smallest request that a model of a served task takes, with these fields in it."""
    return GenerateRequest.model_validate({"prompt": "an example", "seed": 0} | fields)
