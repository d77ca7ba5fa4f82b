"""OpenAI's SDK, and its types."""

from __future__ import annotations

from typing import Any

import openai
from pydantic import BaseModel

from tests.support.server import Server


def sdk(server: Server, **options: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, **options)


def is_strictly(answer: dict[str, Any], model: type[BaseModel]) -> None:
    """Holds an answer to a type of the SDK's, which by itself takes anything."""
    known = {key: value for key, value in answer.items() if key != "cache_dit"}
    assert set(known) <= set(model.model_fields), set(known) - set(model.model_fields)
    model.model_validate(known, strict=True)
