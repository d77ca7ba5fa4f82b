"""A server's answers against the schemas that it publishes, and through BentoML's own clients, which read by them."""

from __future__ import annotations

import asyncio
from typing import Any

import bentoml

from tests.support.server import Server

Json = dict[str, Any]

READ = ("/health", "/get_model_info", "/capabilities", "/loras", "/quality")
"""Routes of GET whose answers have schemas."""
CLIENT_S = 120.0


def keeps_to_what_it_publishes(server: Server, *, asleep: bool = False, **drawing: Any) -> None:
    """Call each `@bentoml.api` method, each as BentoML's clients and as curl do, and hold the answers to the schemas.

    Args:
        asleep: sleep and wake too, which loads the model three times, and answers alike whatever the model is.
        drawing: the body of those that draw.
    """
    methods = [
        each for each in server.get("/schema.json").json()["routes"] if asleep or each["name"] not in ("sleep", "wake")
    ]
    bodies = {each["name"]: drawing if each["input"].get("properties") else {} for each in methods}
    assert {"generate", "compare", "health", "model_info", "flush_cache"} <= bodies.keys()
    document = server.get("/openapi.json").json()
    plain = {}
    for method in methods:
        answer = plain[method["name"]] = _answer(server.post(method["route"], json=bodies[method["name"]]))
        assert disagreements(answer, method["output"]) == []
        assert disagreements(answer, _described(document, "post", method["route"])) == []
    for route in READ:
        assert disagreements(_answer(server.get(route)), _described(document, "get", route)) == []
    for answers in (_by_sync_client(server, bodies), asyncio.run(_by_async_client(server, bodies))):
        assert {name: answer.keys() for name, answer in answers.items()} == {
            name: answer.keys() for name, answer in plain.items()
        }


def disagreements(answer: Any, schema: Json) -> list[str]:
    """Where an answer is not as a schema says: a key that the schema lacks, a null or another type than it has."""
    from openapi_schema_validator import OAS31Validator  # which takes a second to import

    return [f"{error.json_path}: {error.message}" for error in OAS31Validator(_closed(schema)).iter_errors(answer)]


def _closed(schema: Any) -> Any:
    """A schema whose objects have no other keys than it names."""
    if isinstance(schema, list):
        return [_closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    named = {"additionalProperties": False} if isinstance(schema.get("properties"), dict) else {}
    return named | {key: _closed(each) for key, each in schema.items()}


def _described(document: Json, method: str, route: str) -> Json:
    answer = document["paths"][route][method]["responses"]["200"]["content"]["application/json"]["schema"]
    return {**answer, "components": document["components"]}


def _answer(response: Any) -> Json:
    assert response.status_code == 200, response.text
    answer: Json = response.json()
    return answer


def _by_sync_client(server: Server, bodies: dict[str, Json]) -> dict[str, Json]:
    with bentoml.SyncHTTPClient(server.url, timeout=CLIENT_S) as client:
        return {name: getattr(client, name)(**body) for name, body in bodies.items()}


async def _by_async_client(server: Server, bodies: dict[str, Json]) -> dict[str, Json]:
    async with bentoml.AsyncHTTPClient(server.url, timeout=CLIENT_S) as client:
        return {name: await getattr(client, name)(**body) for name, body in bodies.items()}
