"""Requests that OpenAI's clients sent to a listening port, byte for byte, against the routes below /v1."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import pytest
import requests
from PIL import Image

from tests.support.server import ROOT, Server

pytestmark = pytest.mark.slow

RECORDED: list[dict[str, Any]] = json.loads(
    (ROOT / "tests" / "http" / "openai_clients.json").read_text(encoding="utf-8")
)


def pictures(answer: requests.Response) -> list[bytes]:
    assert answer.status_code == 200, answer.text
    return [
        requests.get(each["url"], timeout=60).content if "url" in each else base64.b64decode(each["b64_json"])
        for each in answer.json()["data"]
    ]


@pytest.mark.parametrize("recorded", RECORDED, ids=lambda recorded: recorded["client"])
def test_what_a_client_sends_is_drawn(rich: Server, recorded: dict[str, Any]) -> None:
    answer = rich.post(recorded["path"], data=recorded["body"].encode("latin-1"), headers=recorded["headers"])
    for content in pictures(answer):
        picture = Image.open(io.BytesIO(content))
        picture.load()
        if "96x96" in recorded["body"]:
            assert picture.size == (96, 96)
    warned = [warning["param"] for warning in answer.json()["cache_dit"]["warnings"]]
    assert warned == (["output_compression"] if "output_compression" in recorded["body"] else [])
    if "DallEAPIWrapper" in recorded["client"]:  # which reads `url` and nothing else
        assert all(each.keys() == {"url"} for each in answer.json()["data"])


def test_what_other_clients_make_of_their_settings_is_drawn(rich: Server) -> None:
    """open-webui with an empty size and a query of Azure's; LibreChat's tool; Volcengine's SDK."""
    for path, fields in (
        ("generations?api-version=2025-04-01", {"model": "flux", "n": 1, "size": "", "response_format": "b64_json"}),
        (
            "generations",
            {"n": 1, "background": "auto", "output_format": "webp", "output_compression": 100, "quality": "auto"},
        ),
        ("generations", {"size": "96x96", "watermark": False, "sequential_image_generation": "disabled"}),
    ):
        answer = rich.post(f"/v1/images/{path}", json={"prompt": "a cat", **fields})
        assert len(pictures(answer)) == 1
        assert answer.json()["cache_dit"]["warnings"] == []
