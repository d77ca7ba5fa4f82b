"""`GET /capabilities` over real HTTP: what it lists is what the server accepts."""

from __future__ import annotations

from cache_dit_serving.caching.settings import CacheOptions
from cache_dit_serving.schemas.request import GenerateRequest
from tests.support.server import Server


def test_the_documents_claim_no_defaults_that_are_not_the_servers(server: Server) -> None:
    document = server.get("/openapi.json").json()
    schemas = [schema for name, schema in document["components"]["schemas"].items() if name.endswith("CacheOptions")]
    assert schemas
    for schema in schemas:
        given = {name for name, field in schema["properties"].items() if "default" in field}
        assert given <= {"enabled", "strict"}


def test_capabilities_are_what_the_server_accepts(server: Server) -> None:
    answer = server.get("/capabilities").json()
    fields = answer["fields"]
    assert set(fields) == set(server.get("/get_model_info").json()["accepted_fields"])
    assert set(fields) <= set(GenerateRequest.model_fields)
    assert fields["width"]["enum"] == [80, 96, 112]
    assert fields["num_inference_steps"] | {"description": ""} == {
        "type": "integer", "minimum": 1, "maximum": 100, "default": 28, "description": "",
    }  # fmt: skip
    assert fields["speed"]["enum"] == ["lossless", "high", "balanced", "fast"]
    # Each bound is the one that the server holds to.
    steps = fields["num_inference_steps"]["maximum"]
    assert server.generate(num_inference_steps=steps + 1).status_code == 400
    cache = answer["cache"]
    assert cache["supported"]
    assert set(cache["fields"]) == set(CacheOptions.model_fields)
    most = cache["fields"]["Fn_compute_blocks"]["maximum"]
    assert most == min(cache["block_lists"].values()) - 1 == 11
    assert server.generate(cache={"Fn_compute_blocks": most}, num_inference_steps=8).status_code == 200
    assert server.generate(cache={"Fn_compute_blocks": most + 1}).status_code == 400
    most = cache["fields"]["Bn_compute_blocks"]["maximum"]
    assert server.generate(cache={"Bn_compute_blocks": most}, num_inference_steps=8).status_code == 200
    assert server.generate(cache={"Bn_compute_blocks": most + 1}).status_code == 400
    assert cache["default"] == server.generate(num_inference_steps=8).json()["cache"]["settings"]


def test_capabilities_show_each_speed_with_figures_that_hold_for_its_settings(server: Server) -> None:
    speeds = {speed["name"]: speed for speed in server.get("/capabilities").json()["speeds"]}
    assert list(speeds) == ["lossless", "high", "balanced", "fast"]
    assert [name for name, speed in speeds.items() if speed["default"]] == ["balanced"]
    for name in ("high", "balanced", "fast"):
        assert speeds[name]["measured"]["settings_hash"] == speeds[name]["settings_hash"]
        assert server.generate(speed=name).json()["cache"]["settings_hash"] == speeds[name]["settings_hash"]
    assert all(speed["seconds"] > 0 for speed in speeds.values()), "the embedded model measures each at start"
