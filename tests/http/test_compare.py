"""`POST /compare` over real HTTP: one seed with the cache and without."""

from __future__ import annotations

import http.client
import io
import json
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image

from cache_dit_serving.measure.distances.flip import flip
from tests.support.answers import error, metric, pixels
from tests.support.server import Server

ROUGH = {"residual_diff_threshold": 0.4}
"""Settings that reuse most steps: the pictures differ visibly."""


def test_a_comparison_shows_both_pictures_and_how_far_apart_they_are(server: Server) -> None:
    drawn = {"prompt": "a panda on a pink background", "seed": 5, "num_inference_steps": 14}
    request = drawn | {"cache": ROUGH, "include_stats": True}
    answer = server.post("/compare", json=request).json()
    cached, uncached = (
        server.post("/generate", json=drawn | settings).json() for settings in ({"cache": ROUGH}, {"speed": "lossless"})
    )
    assert np.array_equal(pixels(answer["cached"]["image"]), pixels(cached["images"][0]))
    assert np.array_equal(pixels(answer["uncached"]["image"]), pixels(uncached["images"][0]))
    assert answer["cached"]["cache"] == cached["cache"]
    assert answer["uncached"]["cache"] == uncached["cache"]
    gap = np.abs(pixels(cached["images"][0]).astype(float) - pixels(uncached["images"][0]).astype(float)) / 255
    assert answer["psnr_db"] == pytest.approx(-10 * np.log10((gap**2).mean()), abs=0.3)
    assert answer["max_difference"] == pytest.approx(gap.max(), abs=0.01)
    assert 0.5 < answer["ssim"] < 1
    of_files = flip(pixels(cached["images"][0]), pixels(uncached["images"][0]))
    assert answer["flip"] == pytest.approx(of_files, abs=0.01)
    assert not {"flicker", "snr_db", "spectral_db", "worst_frame"} & answer.keys()
    assert not answer["identical"]
    shown = pixels(answer["difference"]).astype(float) / 255
    assert shown.max() == 1
    assert np.corrcoef(shown.ravel(), gap.ravel())[0, 1] > 0.9
    assert answer["speedup"] == pytest.approx(answer["uncached"]["time_cost"] / answer["cached"]["time_cost"], rel=0.01)
    assert answer["stats"]["cache_stats"][0]["block_lists"][0]["cached_steps"]


def test_a_comparison_of_equal_pictures_says_so(server: Server) -> None:
    answer = server.post("/compare", json={"prompt": "a cat", "seed": 1, "num_inference_steps": 2}).json()
    assert (answer["identical"], answer["ssim"], answer["max_difference"]) == (True, 1.0, 0.0)
    assert answer["flip"] == pytest.approx(0, abs=1e-5)
    assert "psnr_db" not in answer
    assert answer["cached"]["cache"]["reason_code"] == "within_warmup"
    assert pixels(answer["difference"]).max() == 0


def test_a_comparison_delivers_files_like_any_request(server: Server) -> None:
    answer = server.post(
        "/compare",
        json={"prompt": "a cat", "seed": 1, "num_inference_steps": 4, "output_format": "url", "image_format": "webp"},
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
    server.wait_until_idle()
    assert metric(server, "cache_dit_serving_generations_total", outcome="cancelled") == before + 1
