"""Three models behind one address: each picture as from a server of its model alone, and refusals by name."""

from __future__ import annotations

import base64
import io
import json
import random
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from cache_dit_serving.config.variables import CONFIG_VARIABLE
from cache_dit_serving.pipeline.load import EMBEDDED_FOLDER
from tests.support.answers import error, metric
from tests.support.families import save_family
from tests.support.jobs import ended, submitted
from tests.support.loras import save_lora
from tests.support.server import Server, ready, serving
from tests.support.waiting import wait_until

SHUFFLE = random.Random(20261128)
CLIENTS = 4
ENCODERS = ("text_encoder", "text_encoder_2", "vae")
UNWARMED = {"speeds": {"warm_up": False}}
SERVER = {"warm_up": False}
"""Without the pictures that each load begins with: a quarter of its time."""


@dataclass
class Behind:
    """A server of three models, and the entry of each alone."""

    server: Server
    alone: dict[str, dict[str, Any]]
    at_first: dict[str, str] = field(init=False)
    """States once it was ready."""

    def __post_init__(self) -> None:
        self.at_first = self.states()

    def states(self) -> dict[str, str]:
        told = self.server.get("/health").json()["models"]
        return {each["name"]: each.get("level", each["status"]) for each in told}


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Behind]:
    folder = tmp_path_factory.mktemp("several")
    pipe = diffusers.DiffusionPipeline.from_pretrained(EMBEDDED_FOLDER, dtype=torch.float32)
    (folder / "loras").mkdir()
    save_lora(pipe, folder / "loras" / "soft.safetensors", seed=7)
    blue = save_lora(pipe, folder / "blue.safetensors", seed=3)
    weights, transformer = _bytes(*pipe.components.values()), _bytes(pipe.transformer)
    shutil.copytree(EMBEDDED_FOLDER / "transformer", folder / "styled")
    file = folder / "styled" / "diffusion_pytorch_model.safetensors"
    save_file({name: each * 1.01 for name, each in load_file(file).items()}, file)
    flux: dict[str, Any] = {"path": "embedded", "schedulers": {}}
    trees: dict[str, dict[str, Any]] = {
        "flux": {"model": flux | {"lora_folder": str(folder / "loras")}},
        "style": {
            "model": flux
            | {"loras": [{"name": "blue", "path": str(blue)}], "components": {"transformer": str(folder / "styled")}},
            "cache": {"max_warmup_steps": 3, "residual_diff_threshold": 0.4},
            "defaults": {"num_inference_steps": 7},
        },
        "wan": {
            "model": {"path": str(save_family("Wan", folder / "wan")), "dtype": "float32", "cpu_threads": 1},
            "cache": {"Fn_compute_blocks": 1, "max_warmup_steps": 1, "residual_diff_threshold": 0.9},
            "defaults": {"width": 32, "height": 32, "num_frames": 9, "num_inference_steps": 6},
            "limits": {"min_side": 32},
        },
    }
    alone = {name: {"name": name, "settings": UNWARMED | tree} for name, tree in trees.items()}
    for name in ("flux", "style"):
        alone[name]["configuration"] = "embedded"
    entries = [alone["flux"] | {"resident": "always", "aliases": ["dall-e-3"]}, alone["style"], alone["wan"]]
    # The encoders and the VAE of two models are equal: with one transformer more both fit, and with Wan's weights not.
    tree = {"models": entries, "server": SERVER, "residency": {"max_device_bytes": weights + transformer + 100_000}}
    (folder / "several.yaml").write_text(yaml.safe_dump(tree))
    with serving(folder / "server", environ={CONFIG_VARIABLE: str(folder / "several.yaml")}) as running:
        running.wait_for(ready)
        yield Behind(running, alone)


def _bytes(*components: Any) -> int:
    modules = [each for each in components if isinstance(each, torch.nn.Module)]
    return sum(tensor.nbytes for each in modules for tensor in (*each.parameters(), *each.buffers()))


ASKED: list[tuple[str, dict[str, Any]]] = [
    ("flux", {"num_inference_steps": 5}),
    ("flux", {"num_inference_steps": 6, "speed": "lossless"}),
    ("flux", {"num_inference_steps": 6, "speed": "fast", "loras": [{"name": "soft", "scale": 0.7}]}),
    ("style", {}),
    ("style", {"loras": [], "speed": "fast"}),
    ("style", {"num_inference_steps": 4, "num_images": 2, "image_format": "webp"}),
    ("wan", {}),
    ("wan", {"speed": "lossless", "num_frames": 5}),
]
REQUESTS = [
    {"model": model, "prompt": prompt, "seed": seed} | fields
    for seed, prompt in enumerate(("a red apple", "a blue boat"))
    for model, fields in ASKED
]


def drawn(server: Server, fields: dict[str, Any]) -> dict[str, Any]:
    answer = server.generate(**fields)
    assert answer.status_code == 200, answer.text
    told = answer.json()
    made = "video" if fields["model"] == "wan" else "images"
    assert told["model"] == answer.headers["X-Model"] == fields["model"]
    return {key: told[key] for key in (made, "seeds", "cache")}


@pytest.mark.slow
def test_a_shuffled_table_of_requests_is_drawn_as_by_a_server_of_each_model_alone(
    behind: Behind, tmp_path: Path
) -> None:
    assert behind.at_first == {"flux": "ready", "style": "unloaded", "wan": "unloaded"}
    shuffled = SHUFFLE.sample(REQUESTS, len(REQUESTS))
    with ThreadPoolExecutor(CLIENTS) as clients:
        together = list(clients.map(lambda fields: drawn(behind.server, fields), shuffled))
    for name, entry in behind.alone.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"models": [entry], "server": SERVER}))
        with serving(tmp_path / name, environ={CONFIG_VARIABLE: str(tmp_path / f"{name}.yaml")}) as alone:
            alone.wait_for(ready)
            assert "models" not in alone.get("/health").json()
            for fields, found in zip(shuffled, together, strict=True):
                if fields["model"] == name:
                    assert drawn(alone, fields) == found, fields
    assert behind.states()["flux"] == "ready", "it is always resident"
    assert sorted(behind.states().values()) == ["disk", "ready", "ready"]
    assert metric(behind.server, "cache_dit_serving_switches_total") >= 3


def test_a_file_names_its_model_so_that_its_request_draws_it_again(behind: Behind) -> None:
    content = base64.b64decode(behind.server.generate(model="style", seed=3).json()["images"][0])
    with Image.open(io.BytesIO(content)) as picture:
        request = json.loads(picture.info["parameters"])
    assert request["model"] == "style"
    again = behind.server.session.post(f"{behind.server.url}/generate", json=request).json()
    assert base64.b64decode(again["images"][0]) == content


def test_a_request_that_waited_for_its_model_has_the_seconds_and_others_do_not(behind: Behind) -> None:
    for name in ("style", "wan"):
        behind.server.post("/wake", json={"model": name})
    assert behind.states() == {"flux": "ready", "style": "disk", "wan": "ready"}
    told = {each["name"]: each["ready_in_s"] for each in behind.server.get("/health").json()["models"]}
    assert told["flux"] == told["wan"] == 0
    fields = {"num_inference_steps": 3, "seed": 1}
    assert "wake" not in behind.server.generate(model="flux", **fields).json()["timings"]
    assert behind.server.generate(model="style", **fields).json()["timings"]["wake"] > 0


def test_what_two_models_share_is_told_and_lies_in_memory_once(behind: Behind) -> None:
    behind.server.post("/wake", json={"model": "style"})
    assert behind.states() == {"flux": "ready", "style": "ready", "wan": "disk"}, "by a bound below two whole models"
    for model, other in (("flux", "style"), ("style", "flux")):
        told = behind.server.get(f"/get_model_info?model={model}").json()["components"]
        shared = {each["name"]: each["shared_with"] for each in told}
        assert shared == {key: [other] for key in ENCODERS} | {"transformer": []}
    behind.server.post("/wake", json={"model": "wan"})
    told = behind.server.get("/get_model_info?model=flux").json()["components"]
    assert [each for each in told if each["shared_with"]] == [], "the other one is on disk"


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/generate", {"prompt": "a", "model": "sdxl"}),
        ("POST", "/compare", {"prompt": "a", "model": "sdxl"}),
        ("POST", "/jobs", {"prompt": "a", "model": "sdxl"}),
        ("POST", "/v1/images/generations", {"prompt": "a", "model": "sdxl"}),
        ("POST", "/v1/videos", {"prompt": "a", "model": "sdxl"}),
        ("POST", "/sleep", {"model": "sdxl"}),
        ("POST", "/wake", {"model": "sdxl"}),
        ("POST", "/flush_cache?model=sdxl", {}),
        ("POST", "/model_info?model=sdxl", {}),
        ("GET", "/get_model_info?model=sdxl", None),
        ("GET", "/capabilities?model=sdxl", None),
        ("GET", "/quality?model=sdxl", None),
        ("GET", "/loras?model=sdxl", None),
        ("GET", "/v1/models/sdxl", None),
    ],
)
def test_an_unknown_model_is_refused_with_the_names_that_there_are(
    behind: Behind, method: str, path: str, body: dict[str, Any] | None
) -> None:
    answer = behind.server.session.request(method, behind.server.url + path, json=body)
    refused = error(answer, 404)
    assert (refused["code"], refused["param"]) == ("model_not_found", "model")
    assert refused["message"] == "the model 'sdxl' is not served here; there is flux, dall-e-3, style, wan"


def test_each_route_answers_of_the_model_that_is_asked_for(behind: Behind) -> None:
    get = behind.server.get
    assert [each["id"] for each in get("/v1/models").json()["data"]] == ["flux", "dall-e-3", "style", "wan"]
    assert get("/v1/models/style").json()["id"] == "style"
    assert get("/capabilities?model=wan").json()["pipeline_class"] == "WanPipeline"
    assert get("/capabilities").json()["pipeline_class"] == "FluxPipeline"
    assert get("/get_model_info?model=wan").json()["pipeline_class"] == "WanPipeline"
    assert behind.server.post("/model_info?model=wan", json={}).json()["pipeline_class"] == "WanPipeline"
    assert [each["name"] for each in get("/loras?model=style").json()["loras"]] == ["blue"]
    assert [each["name"] for each in get("/loras?model=dall-e-3").json()["loras"]] == ["soft"]
    assert get("/quality?model=wan").status_code == 200
    assert behind.server.post("/flush_cache", json={}).json()["message"].count("; ") == 2, "of each model"


def test_openai_images_and_videos_choose_by_their_model(behind: Behind) -> None:
    post = behind.server.post
    picture = post("/v1/images/generations", json={"prompt": "a", "model": "style", "size": "96x96"}).json()
    assert picture["cache_dit"]["cache"]["steps"] == 7
    refused = error(post("/v1/images/generations", json={"prompt": "a", "model": "wan"}), 400)
    assert "this model makes no pictures" in refused["message"]
    video = post("/v1/videos", json={"prompt": "a", "model": "wan", "num_frames": 5}).json()
    assert video["model"] == "wan"
    done = wait_until(
        lambda: (told := behind.server.get(f"/v1/videos/{video['id']}").json())["progress"] == 100 and told
    )
    assert (done["status"], done["size"]) == ("completed", "32x32")


def test_jobs_of_several_models_wait_in_one_queue_and_each_is_drawn_by_its_own(behind: Behind) -> None:
    names = ["wan", "style", "flux", "wan", "style", "flux"]
    jobs = [submitted(behind.server, seed=1, model=name, num_inference_steps=3) for name in names]
    results = [ended(behind.server, job)["result"] for job in jobs]
    kinds = ["video" if name == "wan" else "images" for name in names]
    listed = behind.server.get(f"/jobs?limit={len(jobs)}").json()["jobs"]
    assert [each["model"] for each in reversed(listed)] == names
    assert ended(behind.server, submitted(behind.server, seed=1, num_inference_steps=3))["model"] == "flux"
    assert [kind for kind, result in zip(kinds, results, strict=True) if kind not in result] == []


def test_all_sleep_together_or_one_alone(behind: Behind) -> None:
    post = behind.server.post
    post("/wake", json={"model": "wan"})
    assert post("/sleep", json={"model": "wan"}).json()["freed_bytes"] > 0
    assert behind.states()["wan"] == "disk"
    assert behind.states()["flux"] == "ready"
    assert post("/sleep", json={}).json()["status"] == "asleep"
    assert set(behind.states().values()) == {"disk"}
    assert behind.server.get("/readyz").status_code == 200
    assert behind.server.generate(seed=1, num_inference_steps=3).status_code == 200
