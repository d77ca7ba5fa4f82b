"""Whether a model can be had from the hub: asked of a hub of this machine, by the real client."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ASK = """
import os, sys
from cache_dit_serving.config import hub

for each in sys.argv[1:]:
    print(hub.refusal(each, None, os.environ.get("SUBFOLDER")))
"""
REFUSALS = {"maker/gated": (403, "GatedRepo"), "maker/unknown": (404, "RepoNotFound")}
FILES = {"maker/pipeline": ["model_index.json"], "maker/lora": ["red.safetensors"]}
FILES["maker/several"] = ["base/model_index.json", "turbo/model_index.json"]


class Hub(BaseHTTPRequestHandler):
    """The route by which huggingface_hub reads what a repository holds."""

    def do_GET(self) -> None:
        name = self.path.removeprefix("/api/models/").partition("?")[0]
        status, code = REFUSALS.get(name, (200, ""))
        files = [{"rfilename": file} for file in FILES.get(name, [])]
        body = json.dumps({"id": name, "siblings": files}).encode()
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def refusals(tmp_path: Path, *hub_ids: str, **variables: str) -> list[str]:
    environ = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"} | variables
    words = [sys.executable, "-c", ASK, *hub_ids]
    return subprocess.run(
        words, env=environ, capture_output=True, text=True, check=True, timeout=180
    ).stdout.splitlines()


def test_a_model_that_the_hub_does_not_give_is_refused_with_the_remedy(endpoint: str, tmp_path: Path) -> None:
    told = refusals(tmp_path, "maker/pipeline", "maker/lora", "maker/gated", "maker/unknown", HF_ENDPOINT=endpoint)
    assert told == [
        "None",
        "has no model_index.json on the hub: it is no pipeline of diffusers",
        "has a gate; accept its terms on the hub and set HF_TOKEN",
        "is neither a folder here nor known to the hub (a private model needs HF_TOKEN)",
    ]


def test_without_a_network_only_a_cached_model_can_be_had(tmp_path: Path) -> None:
    snapshot = tmp_path / "hub/models--maker--cached/snapshots/0123"
    snapshot.mkdir(parents=True)
    (snapshot / "model_index.json").write_text("{}")
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs/main").write_text("0123")
    offline = refusals(tmp_path, "maker/cached", "maker/other", HF_HUB_OFFLINE="1")
    assert offline == ["None", "is not in the hub's cache here, and HF_HUB_OFFLINE forbids a download"]
    (unreachable,) = refusals(tmp_path, "maker/other", HF_ENDPOINT="http://127.0.0.1:9")
    assert unreachable.startswith("is neither a folder here nor in the hub's cache, and http://127.0.0.1:9 cannot be")


def test_a_model_in_a_folder_of_a_hub_id_is_found_and_named(endpoint: str, tmp_path: Path) -> None:
    (told,) = refusals(tmp_path, "maker/several", HF_ENDPOINT=endpoint)
    assert told == "has no model_index.json on the hub; its folders base, turbo have one: name one by model.subfolder"
    assert refusals(tmp_path, "maker/several", HF_ENDPOINT=endpoint, SUBFOLDER="turbo") == ["None"]
    (wrong,) = refusals(tmp_path, "maker/several", HF_ENDPOINT=endpoint, SUBFOLDER="fast")
    assert wrong.startswith("has no fast/model_index.json on the hub; its folders base, turbo have one")
