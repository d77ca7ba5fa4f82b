"""LoRAs over real HTTP: the embedded model with two of them behind `bentoml serve`."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image

from cache_dit_serving.pipeline.load import EMBEDDED_FOLDER
from tests.support.loras import save_lora
from tests.support.published import keeps_to_what_it_publishes
from tests.support.server import Server, ready, serving


@pytest.fixture(scope="module")
def server_with_loras(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("loras")
    pipe = diffusers.DiffusionPipeline.from_pretrained(EMBEDDED_FOLDER, dtype=torch.float32)
    loras = [
        {"name": name, "path": str(save_lora(pipe, folder / f"{name}.safetensors", seed=seed)), "scale": scale}
        for seed, (name, scale) in enumerate({"red": 0.5, "blue": 0.0}.items())
    ]
    (folder / "more").mkdir()
    save_lora(pipe, folder / "more" / "soft.safetensors", seed=7)
    (folder / "more" / "broken.safetensors").write_bytes(b"no LoRA")
    environ = {
        "CACHE_DIT_SERVING__MODEL__LORA_FOLDER": str(folder / "more"),
        "CACHE_DIT_SERVING__MODEL__LORAS": json.dumps(loras),
    }
    with serving(folder, environ=environ) as running:
        running.wait_for(ready)
        yield running


def drawn(server: Server, **fields: Any) -> tuple[str, dict[str, Any]]:
    """A picture and what its file says of it."""
    image = server.generate(prompt="an apple", seed=3, num_inference_steps=8, **fields).json()["images"][0]
    picture = Image.open(io.BytesIO(base64.b64decode(image)))
    return image, json.loads(picture.info["parameters"])


def test_requests_choose_their_loras_and_files_record_them(server_with_loras: Server) -> None:
    usual, parameters = drawn(server_with_loras)
    assert parameters["loras"] == [{"name": "red", "scale": 0.5}]
    none, parameters = drawn(server_with_loras, loras=[])
    assert parameters["loras"] == []
    both, parameters = drawn(server_with_loras, loras=[{"name": "blue", "scale": 1.0}, {"name": "red"}])
    assert parameters["loras"] == [{"name": "blue", "scale": 1.0}, {"name": "red", "scale": 0.5}]
    assert len({usual, none, both}) == 3
    assert server_with_loras.post("/generate", json=parameters).json()["images"] == [both]
    assert drawn(server_with_loras)[0] == usual


def test_what_there_is_to_choose_is_listed(server_with_loras: Server) -> None:
    schema = server_with_loras.get("/capabilities").json()["fields"]["loras"]
    names = [each["properties"]["name"]["const"] for each in schema["items"]["anyOf"]]
    assert names == ["red", "blue", "broken", "soft"]
    assert schema["default"] == [{"name": "red", "scale": 0.5}]
    assert server_with_loras.get("/get_model_info").json()["loras"] == names


def test_the_loras_that_are_loaded_are_described(server_with_loras: Server) -> None:
    red, blue, *_ = server_with_loras.get("/loras").json()["loras"]
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
def test_a_wrong_choice_is_refused_by_its_field(loras: Any, param: str, server_with_loras: Server) -> None:
    answer = server_with_loras.generate(prompt="an apple", loras=loras)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


def test_a_lora_of_the_folder_is_loaded_and_freed(server_with_loras: Server) -> None:
    def loaded(answer: Any) -> list[str]:
        return [lora["name"] for lora in answer.json()["loras"] if lora["loaded"]]

    assert loaded(server_with_loras.get("/loras")) == ["red", "blue"]
    assert loaded(server_with_loras.post("/loras/soft")) == ["red", "blue", "soft"]
    soft, _ = drawn(server_with_loras, loras=[{"name": "soft"}])
    freed = server_with_loras.session.delete(f"{server_with_loras.url}/loras/soft", timeout=30)
    assert loaded(freed) == ["red", "blue"]
    assert drawn(server_with_loras, loras=[{"name": "soft"}])[0] == soft
    assert loaded(server_with_loras.get("/loras")) == ["red", "blue", "soft"]


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("POST", "/loras/green", 404, "there is: red, blue, broken, soft"),
        ("POST", "/loras/../../etc/passwd", 404, ""),
        ("POST", "/loras/broken", 400, "LoRA broken: the file is damaged"),
        ("DELETE", "/loras/green", 404, "there is no LoRA of this name"),
        ("DELETE", "/loras/red", 400, "is loaded with the model, and stays"),
        ("PUT", "/loras/red", 405, ""),
    ],
)
def test_what_cannot_be_loaded_or_freed_says_so(
    method: str, path: str, status: int, words: str, server_with_loras: Server
) -> None:
    answer = server_with_loras.session.request(method, server_with_loras.url + path, timeout=30)
    assert answer.status_code == status
    assert words in answer.text


def test_every_method_answers_as_published_and_by_bentomls_clients(server_with_loras: Server) -> None:
    keeps_to_what_it_publishes(server_with_loras, prompt="an apple", seed=2, num_inference_steps=12)
