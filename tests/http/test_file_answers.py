"""`Accept: image/png` on /generate: the file itself, with the evidence in headers."""

from __future__ import annotations

import base64
import io
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from starlette.datastructures import Headers

from cache_dit_serving.api.file_answers import wanted_file
from tests.support.server import Server

PROMPT = "a red apple on a blue background"


def asked(server: Server, accept: str, **fields: Any) -> Any:
    return server.post("/generate", json={"prompt": PROMPT, "seed": 3} | fields, headers={"Accept": accept})


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        (None, None),
        ("", None),
        ("*/*", None),
        ("application/json", None),
        ("text/html", None),
        ("image/png", "image/png"),
        ("IMAGE/PNG", "image/png"),
        ("image/*", "image/*"),
        ("text/html, image/webp", "image/webp"),
        ("application/json, image/png", None),
        ("image/png, application/json", "image/png"),
        ("image/png;q=0.5, application/json", None),
        ("image/png; q=0.9, */*;q=0.8", "image/png"),
        ("image/png;q=nonsense, */*;q=0.1", None),
        ("image/bmp", None),
        (",;,", None),
    ],
)
def test_the_greatest_weight_decides(accept: str | None, wanted: str | None) -> None:
    assert wanted_file(Headers({} if accept is None else {"accept": accept})) == wanted


def test_a_file_is_the_one_that_json_holds_and_its_evidence_is_in_headers(server: Server) -> None:
    response = asked(server, "image/png", num_inference_steps=8)
    answer = asked(server, "application/json", num_inference_steps=8)
    assert response.headers["Content-Type"] == "image/png"
    assert response.content == base64.b64decode(answer.json()["images"][0])
    cache = answer.json()["cache"]
    for headers in (response.headers, answer.headers):
        assert headers["X-Seed"] == "3"
        assert headers["X-Cache-Engaged"] == "true"
        assert headers["X-Cache-Speed"] == cache["speed"]
        assert headers["X-Cache-Cached-Steps"] == str(cache["cached_steps"])
        assert headers["X-Cache-Steps"] == "8"
        stages = dict(stage.split(";dur=") for stage in headers["Server-Timing"].split(", "))
        assert float(stages["denoise"]) > 0
        assert {"queue", "decode", "encode_output"} <= stages.keys()
        assert headers["X-Request-ID"]


@pytest.mark.parametrize(
    ("accept", "fields", "file_format"),
    [
        ("image/jpeg", {}, "JPEG"),
        ("image/webp", {"image_quality": 60}, "WEBP"),
        ("image/*", {}, "PNG"),
        ("image/*", {"image_format": "jpeg"}, "JPEG"),
        ("image/jpeg", {"output_format": "base64", "num_images": 1}, "JPEG"),
    ],
)
def test_the_format_is_that_of_the_header(
    server: Server, accept: str, fields: dict[str, Any], file_format: str
) -> None:
    response = asked(server, accept, num_inference_steps=2, **fields)
    assert response.status_code == 200
    assert Image.open(io.BytesIO(response.content)).format == file_format


@pytest.mark.parametrize(
    ("accept", "fields", "param", "said"),
    [
        ("image/png", {"image_format": "jpeg"}, "image_format", "leave one of them out"),
        ("image/png", {"num_images": 2}, "num_images", "a file holds one output"),
        ("image/png", {"output_format": "url"}, "output_format", "is for answers of JSON"),
        ("video/mp4", {}, None, "this model makes images: accept image/png, image/jpeg, image/webp"),
        ("audio/*", {}, None, "this model makes images"),
        ("image/png", {"image_form": "jpeg"}, "image_form", "did you mean 'image_format'?"),
    ],
)
def test_what_contradicts_the_header_is_refused_as_json(
    server: Server, accept: str, fields: dict[str, Any], param: str | None, said: str
) -> None:
    response = asked(server, accept, **fields)
    assert (response.status_code, response.headers["Content-Type"]) == (400, "application/json")
    error = response.json()["error"]
    assert error["param"] == param
    assert said in error["message"]


def test_a_warning_is_in_a_header(server: Server) -> None:
    headers = {"Accept": "image/png", "X-Unsupported-Fields": "warn"}
    body = {"prompt": PROMPT, "num_inference_steps": 2, "guidance_scale": 5.0}
    response = server.post("/generate", json=body, headers=headers)
    assert response.status_code == 200, response.text
    assert json.loads(response.headers["X-Warnings"]) == [{"param": "guidance_scale", "code": "unsupported_field"}]


def test_curl_writes_the_file(server: Server, tmp_path: Path) -> None:
    body = json.dumps({"prompt": PROMPT, "num_inference_steps": 2})
    words = ["-H", "Content-Type: application/json", "-H", "Accept: image/png", "-d", body, "-o", "apple.png"]
    subprocess.run(["curl", "-fsS", f"{server.url}/generate", *words], cwd=tmp_path, check=True)
    with Image.open(tmp_path / "apple.png") as image:
        assert image.size == (96, 96)


def test_a_video_comes_as_a_file(wan: Server) -> None:
    response = asked(wan, "video/mp4", num_frames=9)
    assert response.headers["Content-Type"] == "video/mp4"
    answer = asked(wan, "application/json", num_frames=9)
    assert response.content == base64.b64decode(answer.json()["video"])
