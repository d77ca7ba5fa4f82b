"""Pictures in: img2img and inpaint on the embedded model, over HTTP."""

from __future__ import annotations

import base64
import functools
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxImg2ImgPipeline, FluxInpaintPipeline
from PIL import Image, ImageOps

from cache_dit_serving.pipeline.load import EMBEDDED_FOLDER
from tests.support import heic
from tests.support.answers import error, pixels
from tests.support.images import apple, base64_of, data_uri, file_of, mask, noise, png_that_claims
from tests.support.server import Server

pytestmark = pytest.mark.slow

PROMPT = "a red apple on a blue background"
IMAGE = data_uri(file_of(apple()))
MASK = data_uri(file_of(mask()))
STEPS = 10
ASKED: dict[str, Any] = {"seed": 5, "num_inference_steps": STEPS, "speed": "lossless"}


@functools.cache
def loaded(pipeline: Any) -> Any:
    """A pipeline of diffusers' alone."""
    pipe = pipeline.from_pretrained(EMBEDDED_FOLDER, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def by_diffusers(pipeline: Any, **arguments: Any) -> np.ndarray[Any, Any]:
    """The picture of the request above, by diffusers alone."""
    torch.set_num_threads(1)
    usual = {"image": apple(), "width": 96, "height": 96}
    image = loaded(pipeline)(
        prompt=PROMPT,
        num_inference_steps=STEPS,
        max_sequence_length=32,
        generator=torch.Generator("cpu").manual_seed(5),
        output_type="pil",
        **usual | arguments,
    ).images[0]
    return np.asarray(image)


def test_img2img_is_that_of_diffusers_alone(server: Server) -> None:
    answer = server.generate(**ASKED, image_urls=[IMAGE], strength=0.7).json()
    assert np.array_equal(pixels(answer["images"][0]), by_diffusers(FluxImg2ImgPipeline, strength=0.7))
    assert answer["cache"]["steps"] == 7  # 0.7 of 10


def test_inpaint_is_that_of_diffusers_alone(server: Server) -> None:
    answer = server.generate(**ASKED, image_urls=[IMAGE], mask_url=MASK, strength=0.9).json()
    expected = by_diffusers(FluxInpaintPipeline, strength=0.9, mask_image=mask())
    assert np.array_equal(pixels(answer["images"][0]), expected)


SIZE, LANCZOS = (112, 80), Image.Resampling.LANCZOS
FITS: dict[str, tuple[Callable[[Image.Image, str], Image.Image], str]] = {
    "crop": (lambda image, _: ImageOps.fit(image, SIZE, LANCZOS), "what juts out of that shape is cut off"),
    "pad": (lambda image, bars: ImageOps.pad(image, SIZE, LANCZOS, color=bars), "bars fill what it leaves free"),
    "stretch": (lambda image, _: image.resize(SIZE, LANCZOS), "it is stretched to that shape"),
}


@pytest.mark.parametrize("fit", FITS)
def test_pictures_and_masks_of_another_shape_are_fitted_alike_and_that_is_told(server: Server, fit: str) -> None:
    image, hole = noise(200, 320), mask(200, 320)
    sent = {"image_urls": [data_uri(file_of(image))], "mask_url": data_uri(file_of(hole)), "fit": fit}
    answer = server.generate(**ASKED, **sent, strength=0.9, width=112, height=80).json()
    by_pil, words = FITS[fit]
    fields = {"image": by_pil(image, "black"), "mask_image": by_pil(hole, "white"), "width": 112, "height": 80}
    assert np.array_equal(pixels(answer["images"][0]), by_diffusers(FluxInpaintPipeline, strength=0.9, **fields))
    told = [(warning["param"], warning["code"]) for warning in answer["warnings"]]
    assert told == [("image_urls.0", "adjusted"), ("mask_url", "adjusted")]
    assert all(f"is 200 x 320 pixels and 112 x 80 are drawn: {words}" in each["message"] for each in answer["warnings"])


def test_a_picture_of_the_shape_that_is_drawn_is_the_same_whatever_fit_says(server: Server) -> None:
    image = noise(560, 400)
    drawn = []
    for more in ({}, {"fit": "crop"}, {"fit": "pad"}, {"fit": "stretch"}):
        answer = server.generate(**ASKED, image_urls=[data_uri(file_of(image))], width=112, height=80, **more).json()
        assert answer["warnings"] == []
        drawn.append(pixels(answer["images"][0]))
    expected = by_diffusers(FluxImg2ImgPipeline, image=image.resize(SIZE, LANCZOS), width=112, height=80, strength=0.6)
    assert all(np.array_equal(each, expected) for each in drawn)


def test_a_form_hears_of_a_fit_by_its_own_names(server: Server) -> None:
    files = [("image", APPLE), ("mask", ("m.png", file_of(mask())))]
    fields = FORM | {"width": "112", "height": "80", "fit": "pad"}
    warnings = server.post("/generate", data=fields, files=files).json()["warnings"]
    assert [(warning["param"], warning["message"].split()[0]) for warning in warnings] == [
        ("image", "image"),
        ("mask", "mask"),
    ]


def test_a_mask_with_a_clear_canvas_keeps_what_is_clear(server: Server) -> None:
    strokes = Image.new("RGBA", (96, 96), (255, 255, 255, 0))
    strokes.paste((255, 255, 255, 255), (48, 0, 96, 96))
    asked = {**ASKED, "image_urls": [IMAGE], "strength": 0.9}
    answers = [server.generate(**asked, mask_url=url).json() for url in (MASK, data_uri(file_of(strokes)))]
    drawn = [pixels(answer["images"][0]) for answer in answers]
    assert np.array_equal(drawn[0], drawn[1])


def test_a_picture_with_the_seed_and_size_that_drew_it_is_told_of(server: Server) -> None:
    drawn = server.generate(seed=5, num_images=2, num_inference_steps=2, width=112, height=80).json()["images"]
    asked = {"image_urls": [drawn[1]], "num_inference_steps": 2}
    (warning,) = server.generate(**asked, seed=6).json()["warnings"]
    assert (warning["param"], warning["code"]) == ("seed", "repeated_seed")
    assert "image_urls.0 was drawn with seed 6 at this size" in warning["message"]
    assert server.generate(**asked, seed=5, num_images=2).json()["warnings"] == [warning]
    for other in ({"seed": 5}, {"seed": 6, "width": 80, "height": 112}, {}):
        warnings = server.generate(**asked, **other).json()["warnings"]
        assert "repeated_seed" not in [each["code"] for each in warnings]


def test_what_the_mask_keeps_stays_and_the_rest_changes(server: Server) -> None:
    prompt = "a green pear on a yellow background"
    answer = server.generate(prompt=prompt, seed=5, image_urls=[IMAGE], mask_url=MASK, strength=1)
    drawn = pixels(answer.json()["images"][0]).astype(int)
    gone = np.abs(drawn - np.asarray(apple()).astype(int)).mean(axis=(0, 2))
    assert gone[:40].mean() < 8
    assert gone[56:].mean() > 40


def test_the_cache_holds_on_each_task_and_none_leaves_a_trace_on_another(server: Server) -> None:
    text: dict[str, Any] = {"seed": 3, "num_inference_steps": STEPS}
    before = server.generate(**text).json()
    for fields in ({"image_urls": [IMAGE]}, {"image_urls": [IMAGE], "mask_url": MASK}):
        answers = [server.generate(**text, **fields, strength=0.9).json() for _ in range(2)]
        assert answers[0]["images"] == answers[1]["images"]
        assert answers[0]["cache"]["engaged"]
        assert answers[0]["cache"]["executed_steps"] == 9
        lossless = server.generate(**text, **fields, strength=0.9, speed="lossless").json()
        assert not lossless["cache"]["enabled"]
        assert lossless["images"] != answers[0]["images"]
    assert server.generate(**text).json()["images"] == before["images"]


def test_the_size_is_the_pictures_within_what_the_model_draws(server: Server) -> None:
    for given, drawn in (((96, 80), (96, 80)), ((50, 60), (80, 80)), ((2000, 1000), (112, 80)), ((64, 512), (80, 112))):
        answer = server.generate(num_inference_steps=2, image_urls=[data_uri(file_of(apple(*given)))]).json()
        height, width, _ = pixels(answer["images"][0]).shape
        assert (width, height) == drawn
    answer = server.generate(num_inference_steps=2, image_urls=[IMAGE], width=112, height=80).json()
    assert pixels(answer["images"][0]).shape == (80, 112, 3)


def test_the_file_names_its_pictures_by_their_digest(server: Server) -> None:
    answer = server.generate(num_inference_steps=2, image_urls=[IMAGE], mask_url=MASK, seed=1).json()
    with Image.open(io.BytesIO(base64.b64decode(answer["images"][0]))) as image:
        record = json.loads(str(image.info["parameters"]))
    assert [text[:7] for text in (*record["image_urls"], record["mask_url"])] == ["sha256:"] * 2
    assert record["strength"] == 0.6


def opened(file: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(file)))


def test_a_file_states_whether_a_model_made_or_changed_it_unless_the_operator_has_it_off(
    server: Server, limited: Server
) -> None:
    def stated(file: str) -> str:
        packet = opened(file).info["xmp"].decode()
        return packet.partition("digitalsourcetype/")[2].partition('"')[0]

    made = {"seed": 5, "num_inference_steps": 2}
    assert stated(server.generate(**made).json()["images"][0]) == "trainedAlgorithmicMedia"
    for inputs in ({"image_urls": [IMAGE]}, {"image_urls": [IMAGE], "mask_url": MASK}):
        for name in ("png", "jpeg", "webp"):
            changed = server.generate(**made, **inputs, image_format=name).json()["images"][0]
            assert stated(changed) == "compositeWithTrainedAlgorithmicMedia"
    plain = limited.generate(seed=5, num_inference_steps=3).json()["images"][0]
    assert "xmp" not in opened(plain).info
    assert "parameters" in opened(plain).info


def test_compare_and_deadline_take_pictures(server: Server) -> None:
    asked = {"prompt": PROMPT, "seed": 3, "image_urls": [IMAGE], "strength": 0.9, "num_inference_steps": STEPS}
    answer = server.post("/compare", json=asked).json()
    assert answer["cached"]["cache"]["engaged"]
    assert answer["psnr_db"] > 20
    assert server.generate(image_urls=[IMAGE], deadline_s=60, num_inference_steps=4).json()["deadline"]


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
    "a file": ({"image_urls": ["file:///etc/passwd"]}, "image_urls.0", "is not an http or https address"),
    "ftp": ({"image_urls": ["ftp://example.org/a.png"]}, "image_urls.0", "is not an http or https address"),
    "an address": ({"image_urls": ["http://127.0.0.1/a.png"]}, "image_urls.0", "does not open (inputs.url_hosts)"),
    "metadata": ({"image_urls": ["http://169.254.169.254/latest"]}, "image_urls.0", "does not open"),
    "a name of our own": ({"image_urls": ["upload:0"]}, "image_urls.0", "is no picture"),
    "a mask alone": ({"mask_url": MASK}, "mask_url", "send that in image_urls"),
    "a mask of another size": (
        {"image_urls": [IMAGE], "mask_url": data_uri(file_of(mask(64, 96)))},
        "mask_url",
        "64 x 96 pixels and its picture 96 x 96",
    ),
    "two": ({"image_urls": [IMAGE, IMAGE]}, "image_urls", "takes one"),
    "fifty": ({"image_urls": [IMAGE] * 50}, "image_urls", "at most 16"),
    "a number": ({"image_urls": [7]}, "image_urls.0", "string"),
    "strength 0": ({"image_urls": [IMAGE], "strength": 0}, "strength", "greater than 0"),
    "strength 1.5": ({"image_urls": [IMAGE], "strength": 1.5}, "strength", "less than or equal to 1"),
    "no steps left": ({"image_urls": [IMAGE], "strength": 1e-20}, "strength", "leaves none"),
    "strength without a picture": ({"strength": 0.5}, "strength", "image_urls"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_pictures_are_refused_by_name_and_nothing_is_disturbed(server: Server, case: str) -> None:
    fields, param, words = BAD[case]
    refused = error(server.generate(num_inference_steps=2, **fields), 400)
    assert refused["param"] == param
    assert words in refused["message"]
    assert server.generate(num_inference_steps=2, image_urls=[IMAGE], seed=1).status_code == 200


def test_a_body_of_pictures_may_be_larger_than_others_and_no_larger_than_its_limit(server: Server) -> None:
    large = data_uri(file_of(noise(1600, 1000), compress_level=0))
    assert len(large) > 6_000_000
    assert server.generate(num_inference_steps=2, image_urls=[large]).status_code == 200
    assert (
        server.post("/flush_cache", data=b" " * 1_100_000, headers={"Content-Type": "application/json"}).status_code
        == 413
    )
    assert error(server.generate(image_urls=["A" * 34_000_000]), 413)["code"] == "body_too_large"


FORM: dict[str, Any] = {"prompt": PROMPT, "seed": "5", "num_inference_steps": "6", "strength": "0.7"}
APPLE = ("apple.png", file_of(apple()), "image/png")


def test_a_form_is_the_request_that_says_the_same(server: Server) -> None:
    cache = {"residual_diff_threshold": 0.2, "max_warmup_steps": 2}
    asked = {"seed": 5, "num_inference_steps": 6, "strength": 0.7, "image_urls": [IMAGE]}
    sent = server.generate(**asked, cache=cache, negative_prompt="").json()["images"]
    fields = FORM | {"cache": json.dumps(cache), "negative_prompt": "", "width": ""}
    for name in ("image", "image[]", "image_urls"):
        response = server.post("/generate", data=fields, files=[(name, APPLE)])
        assert response.status_code == 200, response.text
        assert response.json()["images"] == sent
    text = server.post(
        "/generate", files=[(name, (None, value)) for name, value in (fields | {"image_urls": IMAGE}).items()]
    )
    assert text.json()["images"] == sent
    masked = server.post("/generate", data=FORM, files=[("image", APPLE), ("mask", ("m.png", file_of(mask())))])
    expected = server.generate(**asked, mask_url=MASK)
    assert masked.json()["images"] == expected.json()["images"]


BAD_FORMS: dict[str, tuple[dict[str, Any], list[Any], str | None, str]] = {
    "another file": ({}, [("photo", APPLE)], "photo", "send image, mask, control, last_image or video"),
    "two masks": ({}, [("image", APPLE), ("mask", APPLE), ("mask", APPLE)], "mask", "stands twice"),
    "no picture": ({}, [("image", ("a.png", b"text"))], "image", "image is not a picture"),
    "an empty file": ({}, [("image[]", ("a.png", b""))], "image", "image is not a picture"),
    "a HEIC": ({}, [("image", ("a.heic", heic.APPLE))], "image", "image is a HEIC (HEIF), which"),
    "a GIF for a mask": ({}, [("image", APPLE), ("mask", ("a.gif", file_of(mask(), "GIF")))], "mask", "mask is a GIF"),
    "a mask alone": ({}, [("mask", APPLE)], "mask", "mask is a mask of a picture; send that in image_urls"),
    "a mask of another size": (
        {},
        [("image", APPLE), ("mask", ("m.png", file_of(mask(64, 96))))],
        "mask",
        "mask is 64 x 96 pixels",
    ),
    "two": ({}, [("image", APPLE), ("image", APPLE)], "image", "image holds 2 pictures"),
    "the second of three": ({}, [("image", APPLE), ("image", ("b", b"")), ("image", APPLE)], "image.1", "image.1 is"),
    "a control": ({}, [("control", APPLE)], "control", "does not take control;"),
    "a video": ({}, [("video", APPLE)], "video", "does not take video;"),
    "a word for a number": ({"seed": "seven"}, [("image", APPLE)], "seed", "integer"),
    "no json": ({"cache": "{fast}"}, [("image", APPLE)], "cache", "object"),
    "an unknown field": ({"steps": "4"}, [("image", APPLE)], "steps", "not a field"),
    "twenty-one files": ({}, [("image", APPLE)] * 21, None, "Too many files"),
    "seventeen pictures": ({}, [("image", APPLE)] * 17, "image", "at most 16"),
    "another's picture": ({"image_urls": "upload:1"}, [("mask", APPLE)], "image_urls.0", "is no picture"),
}


@pytest.mark.parametrize("case", BAD_FORMS)
def test_a_bad_form_is_refused_by_name(server: Server, case: str) -> None:
    fields, sent, param, words = BAD_FORMS[case]
    refused = error(server.post("/generate", data={"prompt": PROMPT} | fields, files=sent), 400)
    assert refused["param"] == param
    assert words in refused["message"]


@pytest.mark.parametrize(
    "body", [b"", b"--x", b"--x\r\n\r\n\r\n--x--", b"--x\r\nContent-Disposition: form-data\r\n\r\na\r\n--x--"]
)
def test_a_broken_form_is_refused(server: Server, body: bytes) -> None:
    for kind in ("multipart/form-data; boundary=x", "multipart/form-data"):
        error(server.post("/generate", data=body or b"\r\n", headers={"Content-Type": kind}), 400)
    assert error(server.post("/flush_cache", files=[("image", APPLE)]), 415)


def test_files_of_an_opened_folder_are_taken_and_no_others(rich: Server, open_folder: Path) -> None:
    sent = rich.generate(**ASKED, image_urls=[IMAGE]).json()["images"]
    assert rich.generate(**ASKED, image_urls=[str(open_folder / "open" / "apple.png")]).json()["images"] == sent
    for path in ("secret.png", "open/../secret.png", "open/link.png", "open", "open/\0.png", "nothing.png"):
        refused = error(rich.generate(image_urls=[f"{open_folder}/{path}"]), 400)
        assert refused["message"].startswith("image_urls.0 is not")
        assert str(open_folder) not in refused["message"]


def test_an_address_of_an_opened_host_is_fetched_and_no_other(rich: Server, file_port: int) -> None:
    sent = rich.generate(**ASKED, image_urls=[IMAGE]).json()["images"]
    url = f"http://127.0.0.1:{file_port}/apple.png"
    assert rich.generate(**ASKED, image_urls=[url]).json()["images"] == sent
    assert "answered 404" in error(rich.generate(image_urls=[f"{url}.gone"]), 400)["message"]
    for other in (f"http://localhost:{file_port}/apple.png", rich.url + "/health", "http://169.254.169.254/"):
        assert "does not open" in error(rich.generate(image_urls=[other]), 400)["message"]
