"""Pictures in: img2img and inpaint on the embedded model, over HTTP."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxImg2ImgPipeline, FluxInpaintPipeline
from PIL import Image

from cache_dit_serving.pipeline.load import EMBEDDED_FOLDER
from tests.support.answers import error, pixels
from tests.support.pictures import apple, base64_of, data_uri, file_of, mask, noise, png_that_claims
from tests.support.server import Server

PROMPT = "a red apple on a blue background"
PICTURE = data_uri(file_of(apple()))
MASK = data_uri(file_of(mask()))
ASKED: dict[str, Any] = {"seed": 5, "num_inference_steps": 20, "speed": "lossless"}


def by_diffusers(pipeline: Any, **arguments: Any) -> np.ndarray[Any, Any]:
    """The picture of the request above, by diffusers alone."""
    pipe = pipeline.from_pretrained(EMBEDDED_FOLDER, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    torch.set_num_threads(1)
    image = pipe(
        prompt=PROMPT,
        image=apple(),
        width=96,
        height=96,
        num_inference_steps=20,
        max_sequence_length=32,
        generator=torch.Generator("cpu").manual_seed(5),
        output_type="pil",
        **arguments,
    ).images[0]
    return np.asarray(image)


def test_img2img_is_that_of_diffusers_alone(server: Server) -> None:
    answer = server.generate(**ASKED, image_urls=[PICTURE], strength=0.7).json()
    assert np.array_equal(pixels(answer["images"][0]), by_diffusers(FluxImg2ImgPipeline, strength=0.7))
    assert answer["cache"]["steps"] == 14  # 0.7 of 20


def test_inpaint_is_that_of_diffusers_alone(server: Server) -> None:
    answer = server.generate(**ASKED, image_urls=[PICTURE], mask_url=MASK, strength=0.9).json()
    expected = by_diffusers(FluxInpaintPipeline, strength=0.9, mask_image=mask())
    assert np.array_equal(pixels(answer["images"][0]), expected)


def test_what_the_mask_keeps_stays_and_the_rest_changes(server: Server) -> None:
    prompt = "a green pear on a yellow background"
    answer = server.generate(prompt=prompt, seed=5, image_urls=[PICTURE], mask_url=MASK, strength=1)
    drawn = pixels(answer.json()["images"][0]).astype(int)
    gone = np.abs(drawn - np.asarray(apple()).astype(int)).mean(axis=(0, 2))
    assert gone[:40].mean() < 8
    assert gone[56:].mean() > 40


def test_the_cache_holds_on_each_task_and_none_leaves_a_trace_on_another(server: Server) -> None:
    text: dict[str, Any] = {"seed": 3, "num_inference_steps": 20}
    before = server.generate(**text).json()
    for fields in ({"image_urls": [PICTURE]}, {"image_urls": [PICTURE], "mask_url": MASK}):
        answers = [server.generate(**text, **fields, strength=0.9).json() for _ in range(2)]
        assert answers[0]["images"] == answers[1]["images"]
        assert answers[0]["cache"]["engaged"]
        assert answers[0]["cache"]["executed_steps"] == 18
        lossless = server.generate(**text, **fields, strength=0.9, speed="lossless").json()
        assert not lossless["cache"]["enabled"]
        assert lossless["images"] != answers[0]["images"]
    assert server.generate(**text).json()["images"] == before["images"]


def test_the_size_is_the_pictures_within_what_the_model_draws(server: Server) -> None:
    for given, drawn in (((96, 80), (96, 80)), ((50, 60), (80, 80)), ((2000, 1000), (112, 80)), ((64, 512), (80, 112))):
        answer = server.generate(num_inference_steps=4, image_urls=[data_uri(file_of(apple(*given)))]).json()
        height, width, _ = pixels(answer["images"][0]).shape
        assert (width, height) == drawn
    answer = server.generate(num_inference_steps=4, image_urls=[PICTURE], width=112, height=80).json()
    assert pixels(answer["images"][0]).shape == (80, 112, 3)


def test_the_file_names_its_pictures_by_their_digest(server: Server) -> None:
    answer = server.generate(num_inference_steps=4, image_urls=[PICTURE], mask_url=MASK, seed=1).json()
    with Image.open(io.BytesIO(base64.b64decode(answer["images"][0]))) as image:
        record = json.loads(str(image.info["parameters"]))
    assert [text[:7] for text in (*record["image_urls"], record["mask_url"])] == ["sha256:"] * 2
    assert record["strength"] == 0.6


def test_compare_and_deadline_take_pictures(server: Server) -> None:
    answer = server.post(
        "/compare", json={"prompt": PROMPT, "seed": 3, "image_urls": [PICTURE], "strength": 0.9}
    ).json()
    assert answer["cached"]["cache"]["engaged"]
    assert answer["psnr_db"] > 20
    assert server.generate(image_urls=[PICTURE], deadline_s=60, num_inference_steps=8).json()["deadline"]


def test_the_server_says_which_tasks_it_has_and_what_they_take(server: Server) -> None:
    capabilities = server.get("/capabilities").json()
    assert capabilities["tasks"] == ["img2img", "inpaint", "text-to-image"]
    assert capabilities["fields"]["image_urls"]["maxItems"] == 1
    assert capabilities["fields"]["strength"]["default"] == 0.6
    info = server.get("/get_model_info").json()
    assert {"image_urls", "mask_url", "strength"} <= set(info["accepted_fields"])


BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "no picture": ({"image_urls": [base64_of(b"MZ" * 500)]}, "image_urls.0", "not a picture"),
    "garbage of 10 MB": ({"image_urls": ["QUJD" * 2_500_000]}, "image_urls.0", "not a picture"),
    "too large a file": ({"image_urls": ["QUJD" * 7_500_000]}, "image_urls.0", "more than"),
    "30,000 x 30,000": ({"image_urls": [base64_of(png_that_claims(30_000, 30_000))]}, "image_urls.0", "pixels"),
    "a file": ({"image_urls": ["file:///etc/passwd"]}, "image_urls.0", "opens no file address"),
    "ftp": ({"image_urls": ["ftp://example.org/a.png"]}, "image_urls.0", "opens no ftp address"),
    "a name of our own": ({"image_urls": ["upload:0"]}, "image_urls.0", "is no picture"),
    "a mask alone": ({"mask_url": MASK}, "mask_url", "send that in image_urls"),
    "a mask of another size": (
        {"image_urls": [PICTURE], "mask_url": data_uri(file_of(mask(64, 96)))},
        "mask_url",
        "64 x 96 pixels and its picture 96 x 96",
    ),
    "two": ({"image_urls": [PICTURE, PICTURE]}, "image_urls", "takes one"),
    "fifty": ({"image_urls": [PICTURE] * 50}, "image_urls", "at most 16"),
    "a number": ({"image_urls": [7]}, "image_urls.0", "string"),
    "strength 0": ({"image_urls": [PICTURE], "strength": 0}, "strength", "greater than 0"),
    "strength 1.5": ({"image_urls": [PICTURE], "strength": 1.5}, "strength", "less than or equal to 1"),
    "no steps left": ({"image_urls": [PICTURE], "strength": 1e-20}, "strength", "leaves none"),
    "strength without a picture": ({"strength": 0.5}, "strength", "image_urls"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_pictures_are_refused_by_name_and_nothing_is_disturbed(server: Server, case: str) -> None:
    fields, param, words = BAD[case]
    refused = error(server.generate(num_inference_steps=4, **fields), 400)
    assert refused["param"] == param
    assert words in refused["message"]
    assert server.generate(num_inference_steps=4, image_urls=[PICTURE], seed=1).status_code == 200


def test_a_body_of_pictures_may_be_larger_than_others_and_no_larger_than_its_limit(server: Server) -> None:
    large = data_uri(file_of(noise(1600, 1000), compress_level=0))
    assert len(large) > 6_000_000
    assert server.generate(num_inference_steps=4, image_urls=[large]).status_code == 200
    assert (
        server.post("/flush_cache", data=b" " * 1_100_000, headers={"Content-Type": "application/json"}).status_code
        == 413
    )
    assert error(server.generate(image_urls=["A" * 34_000_000]), 413)["code"] == "body_too_large"
