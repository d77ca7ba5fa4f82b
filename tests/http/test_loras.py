"""LoRAs over real HTTP: the embedded model with two of them."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import pytest
from PIL import Image

from tests.support.published import keeps_to_what_it_publishes
from tests.support.server import Server


def drawn(server: Server, **fields: Any) -> tuple[str, dict[str, Any]]:
    """A picture and what its file says of it."""
    image = server.generate(prompt="an apple", seed=3, num_inference_steps=4, **fields).json()["images"][0]
    picture = Image.open(io.BytesIO(base64.b64decode(image)))
    return image, json.loads(picture.info["parameters"])


def test_requests_choose_their_loras_and_files_record_them(rich: Server) -> None:
    usual, parameters = drawn(rich)
    assert parameters["loras"] == [{"name": "red", "scale": 0.5}]
    none, parameters = drawn(rich, loras=[])
    assert parameters["loras"] == []
    both, parameters = drawn(rich, loras=[{"name": "blue", "scale": 1.0}, {"name": "red"}])
    assert parameters["loras"] == [{"name": "blue", "scale": 1.0}, {"name": "red", "scale": 0.5}]
    assert len({usual, none, both}) == 3
    assert rich.post("/generate", json=parameters).json()["images"] == [both]
    assert drawn(rich)[0] == usual


def test_what_there_is_to_choose_is_listed(rich: Server) -> None:
    schema = rich.get("/capabilities").json()["fields"]["loras"]
    names = [each["properties"]["name"]["const"] for each in schema["items"]["anyOf"]]
    assert names == ["red", "blue", "broken", "soft"]
    assert schema["default"] == [{"name": "red", "scale": 0.5}]
    assert rich.get("/get_model_info").json()["loras"] == names


def test_the_loras_that_are_loaded_are_described(rich: Server) -> None:
    red, blue, *_ = rich.get("/loras").json()["loras"]
    size = red.pop("size_bytes")
    assert red == {
        "name": "red",
        "scale": 0.5,
        "min_scale": -2.0,
        "max_scale": 2.0,
        "fused": False,
        "loaded": True,
        "layers": 36,
        "rank": 2,
        "trigger_words": None,
        "format": "diffusers",
        "parts": {"transformer": 36},
        "left_out": None,
        "suggested_steps": None,
        "suggested_shift": None,
    }
    assert 0 < size < 100_000
    assert blue["name"] == "blue"


@pytest.mark.parametrize(
    ("loras", "param"),
    [
        ([{"name": "green"}], "loras.0"),
        ([{"name": "red", "scale": 3.0}], "loras.0"),
        ([{"name": "red", "scale": "1"}], "loras.0.scale"),
        ([{"name": "red", "path": "/etc/passwd"}], "loras.0.path"),
        ("red", "loras"),
    ],
)
def test_a_wrong_choice_is_refused_by_its_field(loras: Any, param: str, rich: Server) -> None:
    answer = rich.generate(prompt="an apple", loras=loras)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_a_lora_of_the_folder_is_loaded_and_freed(rich: Server) -> None:
    def loaded(answer: Any) -> list[str]:
        return [lora["name"] for lora in answer.json()["loras"] if lora["loaded"]]

    assert loaded(rich.get("/loras")) == ["red", "blue"]
    assert loaded(rich.post("/loras/soft")) == ["red", "blue", "soft"]
    soft, _ = drawn(rich, loras=[{"name": "soft"}])
    freed = rich.session.delete(f"{rich.url}/loras/soft", timeout=120)
    assert loaded(freed) == ["red", "blue"]
    assert drawn(rich, loras=[{"name": "soft"}])[0] == soft
    assert loaded(rich.get("/loras")) == ["red", "blue", "soft"]


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("POST", "/loras/green", 404, "there is: red, blue, broken, soft"),
        ("POST", "/loras/../../etc/passwd", 404, ""),
        ("POST", "/loras/broken", 400, "LoRA broken (broken.safetensors): the file is damaged"),
        ("DELETE", "/loras/green", 404, "there is no LoRA of this name"),
        ("DELETE", "/loras/red", 400, "is loaded with the model, and stays"),
        ("PUT", "/loras/red", 405, ""),
    ],
)
def test_what_cannot_be_loaded_or_freed_says_so(method: str, path: str, status: int, words: str, rich: Server) -> None:
    answer = rich.session.request(method, rich.url + path, timeout=120)
    assert answer.status_code == status
    assert words in answer.text


def test_every_method_answers_as_published_and_by_bentomls_clients(rich: Server) -> None:
    keeps_to_what_it_publishes(rich, prompt="an apple", seed=2, num_inference_steps=3)
