"""The native routes over real HTTP: what a client of the old server, of BentoML or of curl gets."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import bentoml
import numpy as np
import pytest
import requests
from PIL import Image

from cache_dit_serving import __version__
from cache_dit_serving.api.operation import JsonBody
from cache_dit_serving.api.routes import OPERATIONS
from tests.support.answers import error
from tests.support.images import apple, file_of
from tests.support.published import keeps_to_what_it_publishes
from tests.support.server import Server


def picture(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


def test_a_prompt_becomes_a_picture_with_its_seed_times_and_evidence(server: Server) -> None:
    response = server.generate(seed=7)
    assert response.status_code == 200
    answer = response.json()
    image = picture(answer["images"][0])
    assert (image.format, image.size, image.mode) == ("PNG", (96, 96), "RGB")
    pixels = np.asarray(image, dtype=float)
    assert pixels[4:12, 4:12].mean(axis=(0, 1)).argmax() == 2, "the background is not blue"
    assert pixels[44:60, 40:56].mean(axis=(0, 1)).argmax() == 0, "the apple is not red"
    assert answer["seeds"] == [7]
    assert answer["request_id"] == response.headers["X-Request-ID"]
    assert "stats" not in answer
    cache = answer["cache"]
    assert cache["enabled"]
    assert cache["engaged"]
    assert "reason" not in cache
    assert cache["steps"] == cache["executed_steps"] == cache["cached_steps"] + cache["computed_steps"] == 28
    start, end = (datetime.fromisoformat(answer[f"inference_{which}_time"]) for which in ("start", "end"))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", answer["inference_start_time"])
    assert (end - start).total_seconds() == pytest.approx(answer["time_cost"], abs=0.002)
    timings = answer["timings"]
    parts = timings["encode_prompt"] + timings["denoise"] + timings["decode"]
    assert 0 < parts <= answer["time_cost"] + 0.01
    assert all(seconds >= 0 for seconds in timings.values())


def test_equal_requests_give_equal_files_and_a_seed_comes_back_when_none_was_sent(server: Server) -> None:
    first = server.generate(num_inference_steps=4).json()
    again = server.generate(num_inference_steps=4, seed=first["seeds"][0]).json()
    assert again["images"] == first["images"]
    assert server.generate(num_inference_steps=1).json()["seeds"] != first["seeds"]


def test_each_of_several_images_is_the_picture_of_its_seed_alone(server: Server) -> None:
    together = server.generate(seed=20, num_images=3, num_inference_steps=6).json()
    assert together["seeds"] == [20, 21, 22]
    alone = [server.generate(seed=seed, num_inference_steps=6).json()["images"][0] for seed in together["seeds"]]
    assert together["images"] == alone
    assert len(set(alone)) == 3
    assert together["cache"]["steps"] == 18
    assert together["cache"]["cached_steps"] > 0


def test_an_answer_and_its_file_name_the_scheduler_that_drew(server: Server) -> None:
    steps = {"num_inference_steps": 4}
    own = server.generate(seed=7, **steps).json()
    chosen = server.generate(seed=7, scheduler="unipc", shift=2.0, **steps).json()
    assert (own["scheduler"], chosen["scheduler"], chosen["shift"]) == ("euler", "unipc", 2.0)
    assert "shift" not in own
    recorded = json.loads(picture(chosen["images"][0]).info["parameters"])
    assert (recorded["scheduler"], recorded["shift"]) == ("unipc", 2.0)
    assert server.post("/generate", json=recorded).json()["images"] == chosen["images"]
    assert server.generate(seed=7, **steps).json()["images"] == own["images"]
    fields = {"prompt": "a red apple", "num_inference_steps": 2, "scheduler": "unipc"}
    file = server.post("/generate", json=fields, headers={"Accept": "image/png"})
    assert file.headers["X-Scheduler"] == "unipc"
    refusal = server.generate(scheduler="heun")
    assert (refusal.status_code, refusal.json()["error"]["param"]) == (400, "scheduler")


def test_stats_hold_each_steps_difference_for_each_image(server: Server) -> None:
    answer = server.generate(seed=1, num_images=2, include_stats=True, num_inference_steps=10).json()
    assert [image["seed"] for image in answer["stats"]["cache_stats"]] == [1, 2]
    record = answer["stats"]["cache_stats"][0]["block_lists"][0]
    assert (record["transformer"], record["block_list"]) == ("transformer", "transformer_blocks")
    assert set(map(str, record["cached_steps"])) <= set(record["diffs"])
    assert record["cached_steps"]


@pytest.mark.parametrize(("name", "kind"), [("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WEBP")])
def test_pictures_come_in_the_format_asked_for(server: Server, name: str, kind: str) -> None:
    answer = server.generate(image_format=name, num_inference_steps=2).json()
    assert picture(answer["images"][0]).format == kind


def test_quality_decides_the_size_of_a_jpeg(server: Server) -> None:
    low, high = (
        len(
            server.generate(seed=1, image_format="jpeg", image_quality=quality, num_inference_steps=4).json()["images"][
                0
            ]
        )
        for quality in (20, 95)
    )
    assert low < high


def test_a_png_holds_what_draws_it_again(server: Server) -> None:
    answer = server.generate(seed=11, num_images=2, num_inference_steps=4, width=80).json()
    image = picture(answer["images"][1])
    image.load()
    parameters = json.loads(image.text["parameters"])  # type: ignore[attr-defined]
    assert parameters["prompt"] == "a red apple on a blue background"
    again = server.post(
        "/generate", json={key: parameters[key] for key in ("prompt", "width", "height", "num_inference_steps", "seed")}
    ).json()
    assert again["images"] == [answer["images"][1]]


def test_a_path_lies_under_the_servers_root(server: Server) -> None:
    answer = server.generate(output_format="path", output_dir="a/b", image_format="webp", num_inference_steps=2).json()
    path = Path(answer["images"][0])
    assert path.is_relative_to(server.outputs / "a" / "b")
    with Image.open(path) as picture:
        assert picture.size == (96, 96)
    assert not [file for file in server.outputs.rglob("*") if file.name.startswith(".partial")]


def test_requests_with_ids_alike_get_files_of_their_own(server: Server) -> None:
    def path(number: int) -> str:
        body = {"prompt": "a cat", "seed": number, "num_inference_steps": 2, "output_format": "path"}
        answer = requests.post(f"{server.url}/generate", json=body, headers={"X-Request-ID": "order-000000000"})
        return str(answer.json()["images"][0])

    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(path, range(4)))
    assert len(set(paths)) == 4
    assert len({Path(file).read_bytes() for file in paths}) == 4


def test_the_old_servers_examples_work_at_the_models_own_size(server: Server) -> None:
    body = {"prompt": "A beautiful sunset over the ocean", "width": 96, "height": 96, "num_inference_steps": 50}
    words = ["curl", "-s", "-X", "POST", f"{server.url}/generate", "-H", "Content-Type: application/json"]
    done = subprocess.run([*words, "-d", json.dumps(body)], capture_output=True, check=True)
    assert picture(json.loads(done.stdout)["images"][0]).size == (96, 96)
    response = requests.post(f"{server.url}/generate", json={"prompt": "A cute cat", "width": 96, "height": 96})
    assert picture(response.json()["images"][0]).size == (96, 96)
    refused = requests.post(f"{server.url}/generate", json={"prompt": "A cute cat", "width": 1024, "height": 1024})
    assert refused.status_code == 400
    assert "80, 96, 112" in refused.json()["error"]["message"]


def test_a_url_serves_the_file(server: Server) -> None:
    answer = server.generate(output_format="url", num_images=2, seed=3, num_inference_steps=2).json()
    inline = server.generate(num_images=2, seed=3, num_inference_steps=2).json()
    for url, expected in zip(answer["images"], inline["images"], strict=True):
        assert url.startswith(server.url + "/outputs/")
        response = server.session.get(url)
        assert response.headers["Content-Type"] == "image/png"
        assert response.content == base64.b64decode(expected)


@pytest.mark.parametrize(
    "path", ["none.png", "..%2f..%2fetc%2fpasswd", "%2fetc%2fpasswd", ".partial-x.png", "a" * 300 + ".png"]
)
def test_nothing_outside_the_root_is_served(server: Server, path: str) -> None:
    response = server.get(f"/outputs/{path}")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "not_found"


def test_a_link_to_itself_is_no_output(server: Server) -> None:
    server.outputs.mkdir(parents=True, exist_ok=True)
    for name in ("round.png", "round"):
        (server.outputs / name).symlink_to(server.outputs / name)
    assert server.get("/outputs/round.png").status_code == 404
    for folder in ("round", "round/deeper"):
        response = server.generate(output_format="path", output_dir=folder, num_inference_steps=2)
        assert (response.status_code, response.json()["error"]["param"]) == (400, "output_dir")


def test_a_link_out_of_the_root_is_not_followed(server: Server, tmp_path: Path) -> None:
    server.outputs.mkdir(parents=True, exist_ok=True)
    (server.outputs / "link").symlink_to(tmp_path)
    (tmp_path / "secret.png").write_bytes(b"x")
    assert server.get("/outputs/link/secret.png").status_code == 404
    response = server.generate(output_format="path", output_dir="link", num_inference_steps=4)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "output_dir")
    assert [file.name for file in tmp_path.iterdir()] == ["secret.png"]


def test_the_bentoml_client_takes_flat_arguments(server: Server) -> None:
    with bentoml.SyncHTTPClient(server.url, timeout=120) as client:
        answer: Any = client.generate(prompt="a panda on a pink background", seed=2, num_inference_steps=3)
        assert picture(answer["images"][0]).size == (96, 96)
        assert client.health()["status"] == "ready"


@pytest.mark.parametrize(
    ("which", "more"),
    [
        # Three loads, which a server without other schedulers makes in half of the time
        pytest.param("limited", {"asleep": True}, marks=pytest.mark.slow),
        ("server", {"include_stats": True, "prompt": "a cat " * 40}),
    ],
)
def test_every_method_answers_as_published_and_by_bentomls_clients(
    request: pytest.FixtureRequest, which: str, more: dict[str, Any]
) -> None:
    running: Server = request.getfixturevalue(which)
    running.wait_until_idle()
    asked: dict[str, Any] = {"prompt": "a cat", "seed": 2, "num_inference_steps": 3} | more
    keeps_to_what_it_publishes(running, **asked)


def test_health_and_model_info_answer_both_methods_alike(server: Server) -> None:
    assert server.get("/health").json() == server.post("/health").json()
    assert server.get("/health").json()["status"] == "ready"
    assert server.get("/health").json()["version"] == __version__
    info, posted = server.get("/get_model_info").json(), server.post("/model_info", json={}).json()
    assert info["configuration"] == "embedded"
    assert info["inherited_cache"]["residual_diff_threshold"] == 0.16
    for answer in (info, posted):
        answer.pop("memory")
    assert info == posted
    assert info["pipeline_class"] == "FluxPipeline"
    assert info["tasks"] == ["img2img", "inpaint", "text-to-image"]
    assert info["defaults"]["width"] == 96
    assert info["cache"]["blocks"] == {"transformer.transformer_blocks": 12}
    assert "prompt" in info["accepted_fields"]


def test_flush_frees_the_cached_activations(server: Server) -> None:
    before = server.generate(seed=5, num_inference_steps=6).json()["images"]
    held = server.get("/get_model_info").json()["memory"]["cached_activation_bytes"]
    assert held > 0
    answer = server.post("/flush_cache").json()
    assert (answer["success"], answer["freed_bytes"]) == (True, held)
    assert server.get("/get_model_info").json()["memory"]["cached_activation_bytes"] == 0
    assert server.post("/flush_cache", json={}).json()["freed_bytes"] == 0
    assert server.generate(seed=5, num_inference_steps=6).json()["images"] == before


def test_the_docs_describe_every_route_without_third_party_scripts(server: Server) -> None:
    page = server.get("/docs").text
    sources = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert sources
    for source in sources:
        assert not source.startswith(("http", "//"))
        assert server.get("/" + source).status_code == 200
    document = server.get("/openapi.json").json()
    routes = {f"{method} {path}" for path, methods in document["paths"].items() for method in methods}
    ours = {"post /generate", "get /health", "post /health", "get /get_model_info", "post /model_info"}
    assert ours | {"post /flush_cache", "get /outputs/{path}", "get /livez", "get /readyz", "get /metrics"} <= routes
    references = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)))
    assert references <= document["components"]["schemas"].keys()
    assert document["paths"]["/generate"]["post"]["responses"].keys() >= {"200", "400", "413", "415", "429", "503"}


def test_a_browser_finds_the_icon_of_the_server(server: Server) -> None:
    icon = server.get("/favicon.ico")
    assert (icon.status_code, icon.headers["Content-Type"]) == (200, "image/png")
    assert Image.open(io.BytesIO(icon.content)).size == (32, 32)
    assert server.session.head(f"{server.url}/favicon.ico").status_code == 200
    assert "/favicon.ico" not in server.get("/openapi.json").json()["paths"]


@pytest.mark.parametrize(
    ("route", "body"),
    [(each.route, each.body) for each in OPERATIONS if each.body and each.method == "POST"],
)
def test_every_example_of_the_docs_is_answered(server: Server, route: str, body: JsonBody) -> None:
    answer = server.post(route, json=body.example)
    if route == "/models/{name}/reload":  # no model has this name
        assert error(answer, 404)["param"] == "name"
    elif route == "/v1/videos":  # this model makes pictures
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "model")
    else:
        assert answer.status_code in (200, 202), answer.text


def test_forms_have_an_example_too(server: Server) -> None:
    paths = server.get("/openapi.json").json()["paths"]
    forms = {
        path: methods["post"]["requestBody"]["content"]["multipart/form-data"]["example"]
        for path, methods in paths.items()
        if "multipart/form-data" in str(methods.get("post", {}).get("requestBody"))
    }
    assert {"/generate", "/compare", "/jobs", "/v1/images/edits"} <= forms.keys()
    fields = {name: (None, str(value)) for name, value in forms["/v1/images/edits"].items()}
    answer = server.post("/v1/images/edits", files={**fields, "image": ("apple.png", file_of(apple()))})
    assert answer.status_code == 200, answer.text


def test_metrics_count_the_pipelines_busy_seconds(server: Server) -> None:
    def busy() -> float:
        found = re.search(
            r"^cache_dit_serving_pipeline_busy_seconds_total\S* (\S+)$", server.get("/metrics").text, re.M
        )
        return float(found.group(1)) if found else 0.0

    before = busy()
    answer = server.generate(num_inference_steps=4)
    assert answer.json()["time_cost"] - 0.01 < busy() - before < answer.elapsed.total_seconds()


def test_a_range_beyond_an_output_is_refused(server: Server) -> None:
    url = server.generate(output_format="url", num_inference_steps=2).json()["images"][0]
    part = server.session.get(url, headers={"Range": "bytes=0-7"})
    assert (part.status_code, part.content) == (206, b"\x89PNG\r\n\x1a\n")
    refused = server.session.get(url, headers={"Range": "bytes=99999999-"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (416, "range_not_satisfiable")
    malformed = server.session.get(url, headers={"Range": "pixels=1"})
    assert (malformed.status_code, malformed.json()["error"]["code"]) == (400, "invalid_value")


def test_words_that_a_tokenizer_cuts_off_are_given_back(server: Server) -> None:
    fields: dict[str, Any] = {
        "prompt": f"a red apple {'of many words ' * 20}the end",
        "seed": 3,
        "num_inference_steps": 4,
    }
    answer, longer = (server.generate(**fields, **more).json() for more in ({}, {"max_sequence_length": 512}))
    assert [(warning["param"], warning["code"]) for warning in answer["warnings"]] == [("prompt", "truncated")] * 2
    assert answer["warnings"][1]["message"].startswith("tokenizer_2 keeps 32 tokens")
    assert all(warning["message"].endswith("the end'") for warning in answer["warnings"])
    # The text encoder that may read more does.
    (left,) = longer["warnings"]
    assert left["message"].startswith("tokenizer keeps 24 tokens")
    assert longer["images"] != answer["images"]


def test_an_argument_of_the_pipeline_goes_to_it_and_into_the_record(server: Server) -> None:
    plain = server.generate(seed=3, num_inference_steps=4).json()
    other = server.generate(seed=3, num_inference_steps=4, extra_args={"prompt_2": "a strawberry"}).json()
    assert other["images"] != plain["images"]
    record = Image.open(io.BytesIO(base64.b64decode(other["images"][0]))).info["parameters"]
    assert json.loads(record)["extra_args"] == {"prompt_2": "a strawberry"}
    assert server.post("/generate", json=json.loads(record)).json()["images"] == other["images"]
    described = server.get("/capabilities").json()["fields"]["extra_args"]
    assert described["properties"].keys() == {"prompt_2", "negative_prompt_2"}
