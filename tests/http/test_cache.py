"""The cache in the caller's hands, over real HTTP: speeds, settings, evidence, strict, ceilings."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import bentoml
import pytest
import yaml
from PIL import Image

from tests.support.answers import error, metric
from tests.support.clients import start
from tests.support.pipelines import save_stable_diffusion
from tests.support.server import ROOT, Server, ready, serving

pytestmark = pytest.mark.slow

STEPS = 14
SPEEDS = ("lossless", "high", "balanced", "fast")


@pytest.fixture(scope="module")
def by_speed(server: Server) -> dict[str, dict[str, Any]]:
    """The answer at each speed: lossless last, after all that reuse steps."""
    return {speed: server.generate(seed=3, speed=speed).json() for speed in reversed(SPEEDS)}


def test_each_speed_computes_fewer_steps_than_the_one_before(by_speed: dict[str, dict[str, Any]]) -> None:
    reports = [by_speed[speed]["cache"] for speed in SPEEDS]
    assert [report["speed"] for report in reports] == ["lossless", "high", "balanced", "fast"]
    computed = [report["steps"] - report["cached_steps"] for report in reports]
    assert computed == sorted(set(computed), reverse=True)
    cached = [report["cached_steps"] for report in reports]
    assert cached[0] == 0
    assert min(cached[1:]) > 0
    assert reports[0].keys().isdisjoint({"settings", "settings_hash"})
    assert len({report["settings_hash"] for report in reports[1:]}) == 3


def test_lossless_is_the_picture_without_a_cache(server: Server, by_speed: dict[str, dict[str, Any]]) -> None:
    lossless = by_speed["lossless"]
    off = server.generate(seed=3, cache={"enabled": False}).json()
    assert lossless["images"] == off["images"]
    assert (lossless["cache"]["enabled"], lossless["cache"]["reason"]) == (False, "off")


def test_the_default_of_the_server_is_unchanged_by_requests_with_their_own(server: Server) -> None:
    fields = {"seed": 4, "num_inference_steps": STEPS}
    before = server.generate(**fields).json()
    server.generate(**fields, cache={"residual_diff_threshold": 0.9, "enable_dmd": True})
    after = server.generate(**fields).json()
    assert after["images"] == before["images"]
    assert after["cache"] == before["cache"]
    assert server.generate(**fields, speed="balanced").json()["images"] == before["images"]


def test_stats_name_guided_and_unguided_differences(server: Server) -> None:
    fields = {"true_cfg_scale": 3.0, "negative_prompt": "a cat", "num_inference_steps": STEPS, "include_stats": True}
    answer = server.generate(seed=1, **fields).json()
    record = answer["stats"]["cache_stats"][0]["block_lists"][0]
    assert set(record["cfg_diffs"]) == set(record["diffs"]) != set()
    assert answer["cache"]["executed_steps"] == STEPS


def test_a_refreshed_cache_keeps_the_record_of_all_its_steps(server: Server) -> None:
    cache = {"force_refresh_step_hint": 7, "force_refresh_step_policy": "repeat", "max_warmup_steps": 2}
    cache |= {"residual_diff_threshold": 1.0}
    answer = server.generate(seed=1, num_inference_steps=14, cache=cache, include_stats=True).json()
    expected = [step for step in range(14) if step % 7 >= 2]
    assert answer["stats"]["cache_stats"][0]["block_lists"][0]["cached_steps"] == expected
    assert answer["cache"]["cached_steps"] == len(expected)


@pytest.mark.parametrize(
    ("fields", "code", "words"),
    [
        ({"num_inference_steps": 2}, "within_warmup", "no more than the 2 of the warm-up"),
        (
            {"num_inference_steps": 6, "cache": {"residual_diff_threshold": 0.001}},
            "above_threshold",
            "above the threshold 0.001",
        ),
        ({"num_inference_steps": 6, "cache": {"max_cached_steps": 0}}, "none_allowed", "allow no cached step"),
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
    answer = server.generate(seed=6, speed="balanced", cache={"max_cached_steps": 4}, num_inference_steps=STEPS).json()
    with Image.open(io.BytesIO(base64.b64decode(answer["images"][0]))) as image:
        image.load()
        body = json.loads(image.text["parameters"])  # type: ignore[attr-defined]
    again = server.post("/generate", json=body)
    assert again.status_code == 200, again.text
    assert again.json()["images"] == answer["images"]


def test_strict_changes_nothing_where_the_cache_engages(server: Server) -> None:
    fields = {"seed": 1, "num_inference_steps": 10}
    strict = server.generate(**fields, cache={"strict": True})
    assert strict.status_code == 200
    assert strict.json()["images"] == server.generate(**fields).json()["images"]


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


def test_bentomls_client_takes_the_new_fields_and_routes(server: Server) -> None:
    with bentoml.SyncHTTPClient(server.url, timeout=120) as client:
        steps = {"num_inference_steps": 12}
        fields: dict[str, Any] = {"speed": "high", "cache": {"max_cached_steps": 1}, "deadline_s": 60.0}
        answer = client.generate(prompt="a cat", seed=1, **steps, **fields)
        assert answer["cache"]["cached_steps"] == 1
        compared = client.compare(prompt="a cat", seed=1, **steps)
        assert compared["speedup"] > 0


def test_flush_waits_for_its_turn_while_a_generation_runs(server: Server) -> None:
    long: dict[str, Any] = {"prompt": "a cat", "seed": 9, "num_inference_steps": 60}
    answer = start(server, **long)
    server.wait_for(lambda running: running.get("/health").json()["queue"]["step"] > 2)
    flushed = server.post("/flush_cache", json={})
    assert flushed.status_code == 200
    assert flushed.json()["freed_bytes"] > 0
    assert answer.result().json()["images"] == server.generate(**long).json()["images"]


def test_an_operators_default_and_ceiling_hold(limited: Server) -> None:
    steps = {"num_inference_steps": 8}  # its usual 3 are all of the warm-up
    assert limited.generate(seed=1, **steps).json()["cache"]["speed"] == "high"
    refused = error(limited.generate(speed="fast", **steps), 400)
    assert refused["code"] == "above_ceiling"
    assert "lossless, high" in refused["message"]
    above = limited.generate(cache={"residual_diff_threshold": 0.9}, **steps)
    assert error(above, 400)["param"] == "cache.residual_diff_threshold"
    assert error(limited.post("/compare", json={"prompt": "a cat", "speed": "balanced"}), 400)["param"] == "speed"
    allowed = {speed["name"]: speed["allowed"] for speed in limited.get("/capabilities").json()["speeds"]}
    assert allowed == {"lossless": True, "high": True, "balanced": False, "fast": False}
    assert limited.get("/capabilities").json()["fields"]["speed"]["enum"] == ["lossless", "high"]
    # Nor does a deadline go beyond it.
    assert limited.generate(deadline_s=0.001, **steps).json()["deadline"]["speed"] in ("lossless", "high")


def test_a_model_that_cache_dit_does_not_know_is_served_without_and_says_so(tmp_path: Path) -> None:
    tree = yaml.safe_load((ROOT / "configs" / "embedded.yaml").read_text())
    tree["model"]["path"] = str(save_stable_diffusion(tmp_path / "model"))
    file = tmp_path / "other.yaml"
    file.write_text(yaml.safe_dump(tree))
    with serving(tmp_path / "server", CACHE_DIT_SERVING_CONFIG=str(file)) as running:
        running.wait_for(ready)
        steps = {"num_inference_steps": 2}
        report = running.generate(seed=1, **steps).json()["cache"]
        assert (report["enabled"], report["engaged"], report["reason_code"]) == (False, False, "unsupported")
        assert "does not support StableDiffusionPipeline" in report["reason"]
        assert "without a cache" in running.get("/health").json()["reason"]
        assert not running.get("/capabilities").json()["cache"]["supported"]
        assert error(running.generate(speed="fast"), 400)["code"] == "unsupported_field"
        assert running.generate(speed="lossless", **steps).status_code == 200
