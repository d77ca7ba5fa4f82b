"""What the clients of cache_dit.serve (cache-dit 1.3.5) send, sent to a server with the launcher's settings."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import requests
from PIL import Image
from pydantic import BaseModel

from cache_dit_serving.cli.flags import parser
from cache_dit_serving.cli.serve import environment_of
from cache_dit_serving.pipeline.load import EMBEDDED_FOLDER
from tests.support.answers import metric, pixels
from tests.support.server import Server, options, ready, serving

Json = dict[str, Any]
Said = list[tuple[str, str]]


class OldRequest(BaseModel):
    """The fields and defaults of that server's request, its size and steps made small."""

    prompt: str
    negative_prompt: str | None = ""
    width: int = 96
    height: int = 96
    num_inference_steps: int = 6
    guidance_scale: float = 7.5
    sigmas: list[float] | None = None
    seed: int | None = None
    num_images: int = 1
    image_urls: list[str] | None = None
    num_frames: int | None = None
    fps: int | None = 16
    include_stats: bool = False
    output_format: Literal["base64", "path"] = "base64"
    output_dir: str | None = None


class OldResponse(BaseModel):
    """The fields of that server's answer."""

    images: list[str] | None = None
    video: str | None = None
    stats: dict[str, Any] | None = None
    time_cost: float | None = None
    inference_start_time: str | None = None
    inference_end_time: str | None = None


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Weights without guidance, as Qwen-Image's: most old clients send a guidance scale all the same."""
    folder = tmp_path_factory.mktemp("launched")
    model = shutil.copytree(EMBEDDED_FOLDER, folder / "my-model")
    flags = ["--model-path", str(model), "--dtype", "float32", "--device", "cpu"]
    flags += ["--cache", "--Fn", "1", "--w", "4", "--rdt", "0.3"]
    settings = {"width": 96, "height": 96, "max_sequence_length": 32}
    environ = options(MODEL__CPU_THREADS=1, **{f"DEFAULTS__{name.upper()}": value for name, value in settings.items()})
    with serving(folder / "server", environ=environment_of(parser().parse_args(flags), environ)) as running:
        running.wait_for(ready)
        yield running


SIZE: Json = {"width": 96, "height": 96}
TURBO_SIGMAS = [1.0, 0.65, 0.43, 0.28, 0.18, 0.11, 0.06, 0.02]
SCRIPTS: dict[str, Json] = {
    "text to image": {"prompt": "A beautiful sunset over the ocean", **SIZE, "num_inference_steps": 50},
    "timestamps": {
        **SIZE,
        "num_inference_steps": 8,
        "guidance_scale": 1.0,
        "seed": 0,
        "output_format": "path",
        "output_dir": "./timestamps",
    },
    "flux2": {**SIZE, "num_inference_steps": 50, "guidance_scale": 4.0, "seed": 0},
    "flux2 to a folder": {
        **SIZE,
        "num_inference_steps": 8,
        "guidance_scale": 4.0,
        "seed": 0,
        "output_format": "path",
        "output_dir": "outputs_test",
    },
    "flux2 off the grid": {"width": 90, "height": 101, "num_inference_steps": 8, "guidance_scale": 4.0, "seed": 0},
    "flux2 turbo": {
        **SIZE,
        "num_inference_steps": 8,
        "guidance_scale": 2.5,
        "sigmas": TURBO_SIGMAS,
        "seed": 0,
        "num_images": 1,
    },
    "lightning, 4 steps": {**SIZE, "num_inference_steps": 4, "guidance_scale": 1.0, "seed": 42, "num_images": 1},
    "lightning, 8 steps": {**SIZE, "num_inference_steps": 8, "guidance_scale": 1.0, "seed": 42, "num_images": 1},
    "lightning, another size": {
        "width": 112,
        "height": 80,
        "num_inference_steps": 8,
        "guidance_scale": 1.0,
        "seed": 42,
        "num_images": 1,
    },
    "lightning, a batch": {**SIZE, "num_inference_steps": 4, "guidance_scale": 1.0, "seed": 42, "num_images": 4},
    "lightning, stats": {
        **SIZE,
        "num_inference_steps": 8,
        "guidance_scale": 1.0,
        "seed": 456,
        "num_images": 1,
        "include_stats": True,
    },
    "curl of the README": {"prompt": "a cat", **SIZE, "num_inference_steps": 50},
    "python of the README": {"prompt": "a beautiful landscape", **SIZE, "num_inference_steps": 50, "seed": 42},
    "the client of 1.1.8": {"negative_prompt": "", **SIZE, "num_inference_steps": 6, "guidance_scale": 7.5},
    "the whole request": OldRequest(prompt="a dog", seed=3).model_dump(),
    "the request without nulls": OldRequest(prompt="a dog", seed=3).model_dump(exclude_none=True),
    "the request as set": OldRequest(prompt="a dog", seed=3).model_dump(exclude_unset=True),
}


def old_answer(response: requests.Response) -> tuple[OldResponse, Said]:
    """The answer as the old clients read it, and what its warnings name."""
    assert response.status_code == 200, response.text
    body = response.json()
    assert None not in body.values()
    return OldResponse.model_validate(body), [(each["param"], each["code"]) for each in body["warnings"]]


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_request_of_an_old_client_is_answered_in_the_old_shape(server: Server, script: str) -> None:
    fields = SCRIPTS[script]
    answer, said = old_answer(server.generate(**fields))
    assert answer.video is None
    assert answer.time_cost is not None
    assert answer.inference_start_time is not None
    assert answer.inference_end_time is not None
    assert answer.inference_start_time < answer.inference_end_time
    assert (answer.stats is not None) == fields.get("include_stats", False)
    assert answer.images is not None
    assert len(answer.images) == fields.get("num_images", 1)
    width, height = fields.get("width", 96) // 16 * 16, fields.get("height", 96) // 16 * 16
    for picture in answer.images:
        if fields.get("output_format") == "path":
            assert Path(picture).is_absolute()
            shown = np.asarray(Image.open(picture).convert("RGB"))
        else:
            shown = pixels(picture)
        assert shown.shape == (height, width, 3)
    adjusted = [(side, "adjusted") for side in ("width", "height") if fields.get(side, 96) % 16]
    ignored = [("guidance_scale", "unsupported_field")] if "guidance_scale" in fields else []
    assert sorted(said) == sorted(adjusted + ignored)


def test_stats_are_where_old_clients_look(server: Server) -> None:
    info = server.get("/get_model_info").json()
    assert info["enable_cache"]
    answer, _ = old_answer(server.generate(**SCRIPTS["lightning, stats"]))
    assert answer.stats is not None
    assert len(answer.stats["cache_stats"]) == 1


def test_three_at_once(server: Server) -> None:
    def asked(number: int) -> OldResponse:
        fields = {"prompt": f"test prompt {number}", **SIZE, "num_inference_steps": 10, "guidance_scale": 3.5}
        with requests.Session() as session:
            response = session.post(f"{server.url}/generate", json=fields | {"seed": number, "num_images": 1})
        return old_answer(response)[0]

    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(asked, range(3)))
    assert len({answer.images[0] for answer in answers if answer.images}) == 3


@pytest.mark.parametrize(
    "fields",
    [
        {"guidance_scale": 7.5},
        {"image_urls": [], "num_frames": 1},
        {"image_urls": None, "num_frames": None, "fps": 16, "negative_prompt": "", "sigmas": None},
        {"width": "96", "height": 96.0, "num_inference_steps": "6", "seed": "3"},
    ],
    ids=str,
)
def test_what_has_no_effect_changes_no_pixel(server: Server, fields: Json) -> None:
    plain = {**SIZE, "num_inference_steps": 6, "seed": 3}
    expected = pixels(server.generate(**plain).json()["images"][0])
    answer, said = old_answer(server.generate(**plain | fields))
    assert answer.images is not None
    assert np.array_equal(pixels(answer.images[0]), expected)
    assert said == ([("guidance_scale", "unsupported_field")] if "guidance_scale" in fields else [])


def test_a_warning_counts_in_the_metrics(server: Server) -> None:
    labels = {"code": "unsupported_field", "param": "guidance_scale"}
    before = metric(server, "cache_dit_serving_warnings_total", **labels)
    server.generate(**SIZE, num_inference_steps=6, guidance_scale=2)
    assert metric(server, "cache_dit_serving_warnings_total", **labels) == before + 1


def test_the_cache_is_that_of_the_command_line(server: Server) -> None:
    body = server.generate(num_inference_steps=12).json()
    assert body["cache"]["engaged"]
    assert body["cache"]["settings"]["max_warmup_steps"] == 4
    assert body["warnings"] == []


def test_the_old_keys_of_the_models_description(server: Server) -> None:
    info = server.get("/get_model_info").json()
    assert info["model"] == info["model_path"] == "my-model"
    assert (info["torch_dtype"], info["enable_cache"], info["is_loaded"]) == ("torch.float32", True, True)
    assert str(server.outputs.parents[1]) not in str(info)
