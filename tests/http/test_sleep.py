"""`POST /sleep` and `/wake` on a running server: it stays ready, and the next request gets the picture of before."""

from __future__ import annotations

from typing import Any

from tests.support.answers import error, metric
from tests.support.server import Server


def test_a_sleeping_server_is_ready_and_wakes_for_the_next_request(server: Server) -> None:
    fields: dict[str, Any] = {"prompt": "a red apple", "seed": 5, "num_inference_steps": 4}
    before, model = server.generate(**fields).json(), server.get("/get_model_info").json()["model"]
    assert "wake" not in before["timings"]
    assert error(server.post("/sleep", json={"level": "host"}), 400)["param"] == "level"
    slept = server.post("/sleep", timeout=60).json()
    assert (slept["status"], slept["level"], slept["workers"]) == ("asleep", "disk", 1)
    assert slept["freed_bytes"] > 0
    for path in ("/livez", "/readyz", "/capabilities", "/loras", "/metrics"):
        assert server.get(path).status_code == 200, path
    assert server.get("/health").json()["status"] == "asleep"
    assert metric(server, "cache_dit_serving_asleep", level="disk") == 1
    assert metric(server, "cache_dit_serving_workers", state="ready") == 1
    assert server.get("/get_model_info").json()["model"] == model
    assert server.post("/flush_cache", json={}).json()["freed_bytes"] == 0
    assert server.post("/sleep", json={}).json()["freed_bytes"] == 0
    woken = server.generate(**fields)
    assert woken.json()["images"] == before["images"]
    assert woken.json()["timings"]["wake"] > woken.json()["timings"]["queue"]
    assert server.get("/health").json()["status"] == "ready"
    assert metric(server, "cache_dit_serving_wake_seconds_sum", level="disk") > 0
    awake = server.post("/wake", timeout=60).json()
    assert (awake["status"], awake["seconds"]) == ("ready", 0)


def test_an_unknown_level_is_refused_by_name(server: Server) -> None:
    refused = error(server.post("/sleep", json={"level": "floor"}), 400)
    assert refused["param"] == "level"
    assert "host" in refused["message"]
