"""The cache in the caller's hands, over real HTTP: speeds, evidence, strict, compare, capabilities, deadlines."""

from __future__ import annotations

import base64
import http.client
import io
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bentoml
import numpy as np
import pytest
import requests
import yaml
from PIL import Image

from cache_dit_serving.caching.settings import CacheOptions
from cache_dit_serving.schemas.request import GenerateRequest
from tests.support.pipelines import save_stable_diffusion
from tests.support.server import ROOT, Server, ready, serving

STEPS = 20


def pixels(text: str) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB"))


def metric(server: Server, name: str, **labels: str) -> float:
    """The sum of a metric's samples with these labels."""
    total = 0.0
    for line in server.get("/metrics").text.splitlines():
        found = re.fullmatch(rf"{name}(?:\{{(.*)\}})? (\S+)", line)
        if found and all(f'{key}="{value}"' in (found[1] or "") for key, value in labels.items()):
            total += float(found[2])
    return total


def error(response: requests.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    body: dict[str, Any] = response.json()["error"]
    return body


def test_each_speed_reuses_more_than_the_one_before(server: Server) -> None:
    reports = [
        server.generate(seed=3, speed=speed).json()["cache"] for speed in ("lossless", "high", "balanced", "fast")
    ]
    assert [report["speed"] for report in reports] == ["lossless", "high", "balanced", "fast"]
    cached = [report["cached_steps"] for report in reports]
    assert cached == sorted(set(cached))
    assert cached[0] == 0
    assert reports[0].keys().isdisjoint({"settings", "settings_hash"})
    assert len({report["settings_hash"] for report in reports[1:]}) == 3


def test_lossless_is_the_picture_without_a_cache(server: Server) -> None:
    server.generate(seed=3, speed="fast")
    lossless = server.generate(seed=3, speed="lossless").json()
    off = server.generate(seed=3, cache={"enabled": False}).json()
    assert lossless["images"] == off["images"]
    assert (lossless["cache"]["enabled"], lossless["cache"]["reason"]) == (False, "off")


def test_the_default_of_the_server_is_unchanged_by_requests_with_their_own(server: Server) -> None:
    before = server.generate(seed=4).json()
    server.generate(seed=4, cache={"residual_diff_threshold": 0.9, "enable_dmd": True})
    after = server.generate(seed=4).json()
    assert after["images"] == before["images"]
    assert after["cache"] == before["cache"]
    assert server.generate(seed=4, speed="balanced").json()["images"] == before["images"]


def test_stats_name_guided_and_unguided_differences(server: Server) -> None:
    fields = {"true_cfg_scale": 3.0, "negative_prompt": "a cat", "num_inference_steps": STEPS, "include_stats": True}
    answer = server.generate(seed=1, **fields).json()
    record = answer["stats"]["cache_stats"][0]["block_lists"][0]
    assert set(record["cfg_diffs"]) == set(record["diffs"]) != set()
    assert answer["cache"]["executed_steps"] == STEPS


def test_a_refreshed_cache_keeps_the_record_of_all_its_steps(server: Server) -> None:
    cache = {"force_refresh_step_hint": 7, "force_refresh_step_policy": "repeat", "max_warmup_steps": 2}
    cache |= {"residual_diff_threshold": 1.0}
    answer = server.generate(seed=1, num_inference_steps=21, cache=cache, include_stats=True).json()
    expected = [step for step in range(21) if step % 7 >= 2]
    assert answer["stats"]["cache_stats"][0]["block_lists"][0]["cached_steps"] == expected
    assert answer["cache"]["cached_steps"] == len(expected)


@pytest.mark.parametrize(
    ("fields", "code", "words"),
    [
        ({"num_inference_steps": 2}, "within_warmup", "no more than the 2 of the warm-up"),
        ({"cache": {"residual_diff_threshold": 0.001}}, "above_threshold", "above the threshold 0.001"),
        ({"cache": {"max_cached_steps": 0}}, "none_allowed", "allow no cached step"),
        ({"num_inference_steps": 4, "cache": {"steps_computation_mask": [1, 1, 1, 1]}}, "mask_computes_all", "mask"),
    ],
)
def test_what_did_not_engage_says_why_and_strict_makes_it_an_error(
    server: Server, fields: dict[str, Any], code: str, words: str
) -> None:
    report = server.generate(seed=1, **fields).json()["cache"]
    assert (report["enabled"], report["engaged"], report["cached_steps"]) == (True, False, 0)
    assert report["reason_code"] == code
    assert words in report["reason"]
    before = metric(server, "cache_dit_serving_images_total", engaged="false", reason=code)
    strict = server.generate(seed=1, **(fields | {"cache": fields.get("cache", {}) | {"strict": True}}))
    refused = error(strict, 409)
    assert (refused["code"], refused["param"]) == ("cache_not_engaged", "cache.strict")
    assert strict.json()["cache"]["reason_code"] == code
    assert strict.json()["cache"]["settings_hash"] == report["settings_hash"]
    if code == "above_threshold":  # the others are known before anything runs
        assert metric(server, "cache_dit_serving_images_total", engaged="false", reason=code) == before + 1


def test_the_request_in_a_png_draws_it_again_as_it_stands(server: Server) -> None:
    answer = server.generate(seed=6, speed="fast", cache={"max_cached_steps": 9}, num_inference_steps=STEPS).json()
    with Image.open(io.BytesIO(base64.b64decode(answer["images"][0]))) as image:
        image.load()
        body = json.loads(image.text["parameters"])  # type: ignore[attr-defined]
    again = server.post("/generate", json=body)
    assert again.status_code == 200, again.text
    assert again.json()["images"] == answer["images"]


def test_strict_changes_nothing_where_the_cache_engages(server: Server) -> None:
    strict = server.generate(seed=1, cache={"strict": True})
    assert strict.status_code == 200
    assert strict.json()["images"] == server.generate(seed=1).json()["images"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"speed": "turbo"}, "speed"),
        ({"cache": 3}, "cache"),
        ({"cache": {"residual_diff_treshold": 0.2}}, "cache.residual_diff_treshold"),
        ({"cache": {"residual_diff_threshold": "0.2"}}, "cache.residual_diff_threshold"),
        ({"cache": {"residual_diff_threshold": -1}}, "cache.residual_diff_threshold"),
        ({"cache": {"Fn_compute_blocks": 13}}, "cache.Fn_compute_blocks"),
        ({"cache": {"Fn_compute_blocks": 10**30}}, "cache.Fn_compute_blocks"),
        ({"cache": {"steps_computation_mask": "turbo"}}, "cache.steps_computation_mask"),
        (
            {"cache": {"steps_computation_mask": {"compute_bins": [4], "cache_bins": [4]}}},
            "cache.steps_computation_mask",
        ),
        ({"cache": {"steps_computation_mask": 7}}, "cache.steps_computation_mask"),
        ({"cache": {"steps_computation_mask": [1, 2]}}, "cache.steps_computation_mask.1"),
        (
            {"cache": {"steps_computation_mask": {"compute_bins": ["a"], "cache_bins": [1]}}},
            "cache.steps_computation_mask.compute_bins.0",
        ),
        ({"cache": {"steps_computation_mask": "fast"}, "num_inference_steps": 5}, "cache.steps_computation_mask"),
        ({"cache": {"enable_dmd": True, "enable_foca": True}}, "cache.enable_dmd"),
        ({"cache": {"dmd_history": 5}}, "cache.dmd_history"),
        # What the server would have to count up to.
        ({"cache": {"max_warmup_steps": 10**9}}, "cache.max_warmup_steps"),
        ({"cache": {"warmup_interval": 10**9}}, "cache.warmup_interval"),
        (
            {"cache": {"steps_computation_mask": {"compute_bins": [10**9], "cache_bins": [1]}}},
            "cache.steps_computation_mask.compute_bins.0",
        ),
        ({"cache": {"steps_computation_mask": [1] * 1001}}, "cache.steps_computation_mask"),
        ({"cache": {"num_inference_steps": 28}}, "cache.num_inference_steps"),
        ({"deadline_s": 0}, "deadline_s"),
        ({"deadline_s": -2}, "deadline_s"),
    ],
)
def test_wrong_fields_are_refused_by_name(server: Server, fields: dict[str, Any], param: str) -> None:
    assert error(server.generate(**fields), 400)["param"] == param


def test_a_comparison_shows_both_pictures_and_how_far_apart_they_are(server: Server) -> None:
    request = {"prompt": "a panda on a pink background", "seed": 5, "speed": "fast", "include_stats": True}
    answer = server.post("/compare", json=request).json()
    cached, uncached = (
        server.post("/generate", json={"prompt": request["prompt"], "seed": 5, "speed": speed}).json()
        for speed in ("fast", "lossless")
    )
    assert np.array_equal(pixels(answer["cached"]["image"]), pixels(cached["images"][0]))
    assert np.array_equal(pixels(answer["uncached"]["image"]), pixels(uncached["images"][0]))
    assert answer["cached"]["cache"] == cached["cache"]
    assert answer["uncached"]["cache"] == uncached["cache"]
    gap = np.abs(pixels(cached["images"][0]).astype(float) - pixels(uncached["images"][0]).astype(float)) / 255
    assert answer["psnr_db"] == pytest.approx(-10 * np.log10((gap**2).mean()), abs=0.3)
    assert answer["max_difference"] == pytest.approx(gap.max(), abs=0.01)
    assert 0.5 < answer["ssim"] < 1
    assert not answer["identical"]
    shown = pixels(answer["difference"]).astype(float) / 255
    assert shown.max() == 1
    assert np.corrcoef(shown.ravel(), gap.ravel())[0, 1] > 0.9
    assert answer["speedup"] == pytest.approx(answer["uncached"]["time_cost"] / answer["cached"]["time_cost"], rel=0.01)
    assert answer["stats"]["cache_stats"][0]["block_lists"][0]["cached_steps"]


def test_a_comparison_of_equal_pictures_says_so(server: Server) -> None:
    answer = server.post("/compare", json={"prompt": "a cat", "seed": 1, "num_inference_steps": 2}).json()
    assert (answer["identical"], answer["ssim"], answer["max_difference"]) == (True, 1.0, 0.0)
    assert "psnr_db" not in answer
    assert answer["cached"]["cache"]["reason_code"] == "within_warmup"
    assert pixels(answer["difference"]).max() == 0


def test_a_comparison_delivers_files_like_any_request(server: Server) -> None:
    answer = server.post(
        "/compare", json={"prompt": "a cat", "seed": 1, "output_format": "url", "image_format": "webp"}
    ).json()
    for url, kind in (
        (answer["cached"]["image"], "WEBP"),
        (answer["uncached"]["image"], "WEBP"),
        (answer["difference"], "PNG"),
    ):
        assert Image.open(io.BytesIO(requests.get(url).content)).format == kind


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"speed": "lossless"}, "speed"),
        ({"cache": {"enabled": False}}, "cache.enabled"),
        ({"num_images": 2}, "num_images"),
        ({"deadline_s": 9}, "deadline_s"),
    ],
)
def test_a_comparison_without_two_pictures_is_refused(server: Server, fields: dict[str, Any], param: str) -> None:
    assert error(server.post("/compare", json={"prompt": "a cat"} | fields), 400)["param"] == param


def test_a_comparison_whose_client_leaves_is_stopped(server: Server) -> None:
    before = metric(server, "cache_dit_serving_generations_total", outcome="cancelled")
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"))
    body = json.dumps({"prompt": "a cat", "num_inference_steps": 100})
    connection.request("POST", "/compare", body, {"Content-Type": "application/json"})
    server.wait_for(lambda running: running.get("/health").json()["queue"]["step"] > 0)
    connection.close()
    server.wait_for(lambda running: not running.get("/health").json()["queue"]["running"])
    assert metric(server, "cache_dit_serving_generations_total", outcome="cancelled") == before + 1


def test_bentomls_client_takes_the_new_fields_and_routes(server: Server) -> None:
    with bentoml.SyncHTTPClient(server.url) as client:
        answer = client.generate(prompt="a cat", seed=1, speed="high", cache={"max_cached_steps": 3}, deadline_s=60.0)
        assert answer["cache"]["cached_steps"] == 3
        compared = client.compare(prompt="a cat", seed=1, num_inference_steps=12)
        assert compared["speedup"] > 0


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


def test_a_deadline_is_met_without_approximation_where_there_is_time(server: Server) -> None:
    answer = server.generate(seed=1, deadline_s=60).json()
    assert (answer["deadline"]["speed"], answer["cache"]["speed"]) == ("lossless", "lossless")
    assert answer["deadline"]["estimate_s"] < answer["deadline"]["deadline_s"] == 60
    assert answer["images"] == server.generate(seed=1, speed="lossless").json()["images"]


def test_a_deadline_that_nothing_meets_is_refused_at_once_with_the_best_there_is(server: Server) -> None:
    refused_before = metric(server, "cache_dit_serving_deadlines_total", outcome="refused")
    drawn_before = metric(server, "cache_dit_serving_images_total")
    response = server.generate(deadline_s=0.001)
    assert metric(server, "cache_dit_serving_images_total") == drawn_before
    refused = error(response, 504)
    assert (refused["code"], refused["param"]) == ("deadline_unattainable", "deadline_s")
    best = response.json()["deadline"]
    assert best["estimate_s"] > 0.001
    assert best["speed"] in refused["message"]
    assert metric(server, "cache_dit_serving_deadlines_total", outcome="refused") == refused_before + 1


def test_a_deadline_counts_the_queue(server: Server) -> None:
    def busy() -> None:
        requests.post(
            f"{server.url}/generate",
            json={"prompt": "a cat", "num_images": 8, "num_inference_steps": 100, "speed": "lossless"},
        )

    thread = threading.Thread(target=busy)
    thread.start()
    server.wait_for(lambda running: running.get("/health").json()["queue"]["running"])
    response = server.generate(deadline_s=1.0)
    thread.join()
    assert error(response, 504)["code"] == "deadline_unattainable"
    assert response.json()["deadline"]["queue_s"] > 1
    assert int(response.headers["Retry-After"]) >= 1


def test_a_client_that_left_is_not_waited_for(server: Server) -> None:
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"))
    body = json.dumps({"prompt": "a cat", "num_images": 8, "num_inference_steps": 100, "speed": "lossless"})
    connection.request("POST", "/generate", body, {"Content-Type": "application/json"})
    server.wait_for(lambda running: running.get("/health").json()["queue"]["step"] > 0)
    full = server.generate(deadline_s=0.001).json()["deadline"]["queue_s"]
    connection.close()
    # Long before its 800 steps are over.
    server.wait_for(lambda running: running.generate(deadline_s=0.001).json()["deadline"]["queue_s"] < full / 4, 2)


def test_a_deadline_with_a_speed_only_checks_it(server: Server) -> None:
    answer = server.generate(seed=1, deadline_s=60, speed="fast").json()
    assert answer["deadline"]["speed"] == answer["cache"]["speed"] == "fast"
    custom = server.generate(seed=1, deadline_s=60, cache={"max_cached_steps": 2}).json()
    assert (custom["deadline"]["speed"], custom["cache"]["cached_steps"]) == ("custom", 2)


def test_flush_waits_for_its_turn_while_a_generation_runs(server: Server) -> None:
    answers: list[Any] = []

    def long() -> None:
        body = {"prompt": "a cat", "seed": 9, "num_images": 4, "num_inference_steps": 60}
        answers.append(requests.post(f"{server.url}/generate", json=body).json())

    thread = threading.Thread(target=long)
    thread.start()
    server.wait_for(lambda running: running.get("/health").json()["queue"]["step"] > 5)
    flushed = server.post("/flush_cache", json={})
    thread.join()
    assert flushed.status_code == 200
    assert flushed.json()["freed_bytes"] > 0
    alone = server.generate(prompt="a cat", seed=9, num_images=4, num_inference_steps=60).json()
    assert answers[0]["images"] == alone["images"]


def test_metrics_count_what_answers_say(server: Server) -> None:
    def counted() -> tuple[float, float, float, float]:
        return (
            metric(server, "cache_dit_serving_steps_total", kind="computed", speed="fast"),
            metric(server, "cache_dit_serving_steps_total", kind="cached", speed="fast"),
            metric(server, "cache_dit_serving_generations_total", outcome="succeeded", speed="fast"),
            metric(server, "cache_dit_serving_residual_diff_count", speed="fast"),
        )

    before = counted()
    answer = server.generate(seed=1, num_images=2, speed="fast", include_stats=True).json()
    diffs = sum(len(record["diffs"]) for image in answer["stats"]["cache_stats"] for record in image["block_lists"])
    report = answer["cache"]
    added = [after - earlier for after, earlier in zip(counted(), before, strict=True)]
    assert added == [report["computed_steps"], report["cached_steps"], 1, diffs]
    for stage in ("queue", "encode_prompt", "denoise", "decode", "encode_output"):
        assert metric(server, "cache_dit_serving_stage_seconds_count", stage=stage) > 0


def test_the_dashboard_asks_for_metrics_that_there_are(server: Server) -> None:
    server.generate(speed="fast")
    names = set(re.findall(r"^([a-z_]+)(?:\{| )", server.get("/metrics").text, re.M))
    dashboard = json.loads((ROOT / "docs" / "grafana-dashboard.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    asked = set(re.findall(r"(?:cache_dit_serving|bentoml_service)_[a-z_]+", " ".join(expressions)))
    assert asked
    assert asked <= names
    page = (ROOT / "docs" / "metrics.md").read_text()
    assert all(panel["title"] in page for panel in dashboard["panels"])


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An operator who allows at most `high`, and takes it as the default."""
    variables = {"CACHE_DIT_SERVING__SPEEDS__CEILING": "high", "CACHE_DIT_SERVING__SPEEDS__DEFAULT": "high"}
    with serving(tmp_path_factory.mktemp("limited"), environ=variables) as running:
        running.wait_for(ready)
        yield running


def test_an_operators_default_and_ceiling_hold(limited: Server) -> None:
    assert limited.generate(seed=1).json()["cache"]["speed"] == "high"
    refused = error(limited.generate(speed="fast"), 400)
    assert refused["code"] == "above_ceiling"
    assert "lossless, high" in refused["message"]
    assert (
        error(limited.generate(cache={"residual_diff_threshold": 0.9}), 400)["param"] == "cache.residual_diff_threshold"
    )
    assert error(limited.post("/compare", json={"prompt": "a cat", "speed": "balanced"}), 400)["param"] == "speed"
    allowed = {speed["name"]: speed["allowed"] for speed in limited.get("/capabilities").json()["speeds"]}
    assert allowed == {"lossless": True, "high": True, "balanced": False, "fast": False}
    assert limited.get("/capabilities").json()["fields"]["speed"]["enum"] == ["lossless", "high"]
    # Nor does a deadline go beyond it.
    assert limited.generate(deadline_s=0.001).json()["deadline"]["speed"] in ("lossless", "high")


def test_a_model_that_cache_dit_does_not_know_is_served_without_and_says_so(tmp_path: Path) -> None:
    tree = yaml.safe_load((ROOT / "configs" / "embedded.yaml").read_text())
    tree["model"]["path"] = str(save_stable_diffusion(tmp_path / "model"))
    del tree["defaults"]["pipeline_arguments"]
    file = tmp_path / "other.yaml"
    file.write_text(yaml.safe_dump(tree))
    with serving(tmp_path / "server", CACHE_DIT_SERVING_CONFIG=str(file)) as running:
        running.wait_for(ready)
        report = running.generate(seed=1).json()["cache"]
        assert (report["enabled"], report["engaged"], report["reason_code"]) == (False, False, "unsupported")
        assert "does not support StableDiffusionPipeline" in report["reason"]
        assert "without a cache" in running.get("/health").json()["reason"]
        assert not running.get("/capabilities").json()["cache"]["supported"]
        assert error(running.generate(speed="fast"), 400)["code"] == "unsupported_field"
        assert running.generate(speed="lossless").status_code == 200
