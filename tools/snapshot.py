"""Snapshots of the OpenAPI document, of the shape of one answer per kind, and of the messages to and from ranks.

`python -m tools.snapshot` writes both anew.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from cache_dit_serving.api.docs import openapi_document
from cache_dit_serving.api.routes import OPERATIONS
from cache_dit_serving.ranks import wire
from tests.support.server import AS_SERVED, Server, ready, serving

SNAPSHOTS = Path(__file__).resolve().parents[1] / "tests" / "snapshots"
OPENAPI, ANSWERS, WIRE = (SNAPSHOTS / f"{name}.json" for name in ("openapi", "answers", "wire"))


def rendered(document: dict[str, Any]) -> str:
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def wire_document() -> dict[str, Any]:
    """The messages between the server's process and its ranks, as JSON schemas."""
    kinds = ("greeting", "welcome", "down", "up")
    adapters: list[TypeAdapter[Any]] = [getattr(wire, kind.upper()) for kind in kinds]
    return {kind: adapter.json_schema() for kind, adapter in zip(kinds, adapters, strict=True)}


def answers_of(server: Server) -> dict[str, Any]:
    """The shape of one answer of each kind, from a server of the embedded model."""
    asked: dict[str, Any] = {"prompt": "a red apple on a blue background", "seed": 7, "num_inference_steps": 10}
    answers = {
        "generate": server.generate(**asked),
        "generate with stats and a deadline": server.generate(**asked, include_stats=True, deadline_s=600),
        "compare": server.post("/compare", json=asked),
        "error": server.generate(width=97),
        "cache.strict": server.generate(num_inference_steps=4, cache={"strict": True}),
        "health": server.get("/health"),
        "model info": server.get("/get_model_info"),
        "capabilities": server.get("/capabilities"),
        "flush_cache": server.post("/flush_cache", json={}),
    }
    return {kind: shape_of(answer.json()) for kind, answer in answers.items()}


def shape_of(value: Any) -> Any:
    """Keys with the types of their values; of a list its first entry. Values differ from machine to machine."""
    if isinstance(value, dict):
        # By number: steps, of which each machine may reuse others.
        numbered = bool(value) and all(key.isdecimal() for key in value)
        return "{number: ...}" if numbered else {key: shape_of(part) for key, part in value.items()}
    if isinstance(value, list):
        return [shape_of(value[0])] if value else []
    return type(value).__name__


if __name__ == "__main__":
    SNAPSHOTS.mkdir(exist_ok=True)
    WIRE.write_text(rendered(wire_document()), encoding="utf-8")
    OPENAPI.write_text(rendered(openapi_document(OPERATIONS)), encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder), environ=AS_SERVED) as running:
        running.wait_for(ready)
        ANSWERS.write_text(rendered(answers_of(running)), encoding="utf-8")
