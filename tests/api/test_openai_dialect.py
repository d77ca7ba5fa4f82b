"""Bodies below /v1 as clients send them, read in this process."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

import pytest

from cache_dit_serving.api.body import CheckedBody, check_body
from cache_dit_serving.api.matching import Match, match
from cache_dit_serving.errors import InvalidRequest
from cache_dit_serving.schemas.openai import ImageEdit, ImageGeneration

PROMPT = "a red apple"
IMAGE = "data:image/png;base64,AAAA"
GENERATIONS, EDITS, VIDEOS = "/v1/images/generations", "/v1/images/edits", "/v1/videos"


def read(path: str, lenient: bool = False, **fields: Any) -> CheckedBody:
    """The checked body of a request for `path`."""
    row = match("POST", path)
    assert isinstance(row, Match)
    assert row.operation.body is not None
    body = json.dumps({"prompt": PROMPT} | fields).encode()
    return asyncio.run(check_body(body, row.operation.body, lenient=lenient))


def fields_of(checked: CheckedBody) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(checked.respelt)
    return {name: value for name, value in fields.items() if name != "prompt" and value is not None}


def refused(path: str, lenient: bool = False, **fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as error:
        read(path, lenient, **fields)
    return error.value


@pytest.mark.parametrize(
    "name",
    ["size", "model", "quality", "style", "response_format", "output_format", "background", "moderation", "user"],
)
def test_an_empty_text_asks_for_nothing(name: str) -> None:
    for path in (GENERATIONS, EDITS):
        fields: dict[str, Any] = {name: ""} | ({"image": IMAGE} if path == EDITS else {})
        assert name not in fields_of(read(path, **fields))
    assert fields_of(read(VIDEOS, size="", seconds="", input_reference="")) == {}
    assert refused(GENERATIONS, prompt="").param == "prompt"


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ({"output_format": "jpg"}, {"output_format": "jpeg"}),
        ({"output_format": "PNG"}, {"output_format": "png"}),
        ({"n": 1.0}, {"n": 1}),
        ({"seed": 7.0}, {"seed": 7}),
        ({"output_compression": 80.0, "partial_images": 0.0}, {"output_compression": 80, "partial_images": 0}),
        ({"cache": {"max_warmup_steps": 4.0}}, {"cache": {"max_warmup_steps": 4}}),
        ({"guidance_scale": 3.0}, {"guidance_scale": 3.0}),
    ],
)
def test_another_spelling_of_a_value_is_that_value(sent: dict[str, Any], expected: dict[str, Any]) -> None:
    checked = read(GENERATIONS, **sent)
    assert fields_of(checked) == expected
    assert json.loads(checked.respelt)["prompt"] == PROMPT
    assert isinstance(checked.content, ImageGeneration)


@pytest.mark.parametrize(
    ("name", "value"), [("seed", 7.5), ("n", 1.5), ("n", 1e400), ("seed", 1e300), ("guidance_scale", math.nan)]
)
def test_a_number_that_its_field_cannot_hold_is_refused(name: str, value: Any) -> None:
    assert refused(GENERATIONS, **{name: value}).param == name


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"output_compression": 100}, "output_compression"), ({"partial_images": 2}, "partial_images")],
)
def test_a_value_without_effect_is_a_warning(fields: dict[str, Any], param: str) -> None:
    body = read(GENERATIONS, **fields).content
    assert isinstance(body, ImageGeneration)
    assert [(warning.param, warning.code) for warning in body.warnings()] == [(param, "no_effect")]
    assert body.asked().image_quality is None
    assert body.wanted_previews == 0


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("aspect_ratio", "16:9", "send size"),
        ("resolution", "2k", "send size"),
        ("width", 512, "send size"),
        ("image_size", "96x96", "send size"),
        ("batch_size", 2, "send n"),
        ("num_images", 2, "send n"),
        ("steps", 8, "send num_inference_steps"),
        ("cfg_scale", 3.5, "send guidance_scale"),
        ("watermark", True, "no watermark"),
        ("prompt_extend", True, "as they stand"),
        ("enable_safety_checker", True, "checks no content"),
        ("sampler", "euler", "send scheduler"),
        ("image", IMAGE, "/v1/images/edits"),
    ],
)
def test_a_field_of_another_vendors_api_is_refused_with_what_to_send(name: str, value: Any, remedy: str) -> None:
    error = refused(GENERATIONS, **{name: value})
    assert error.param == name
    assert remedy in error.message
    assert "X-Unsupported-Fields: warn" in error.message
    assert "did you mean" not in error.message


def test_a_field_of_another_vendors_api_that_asks_for_nothing_is_served() -> None:
    nothing: dict[str, Any] = {
        "watermark": False,
        "aspect_ratio": None,
        "prompt_extend": False,
        "disable_safety_checker": True,
    }
    assert fields_of(read(GENERATIONS, **nothing, sequential_image_generation="disabled", resolution="")) == {}
    assert refused(GENERATIONS, watermark=0.5).param == "watermark"
    assert refused(GENERATIONS, disable_safety_checker=False).param == "disable_safety_checker"


def test_a_scheduler_and_its_shift_are_fields_of_openais_routes_too() -> None:
    chosen: dict[str, Any] = {"scheduler": "unipc", "shift": 3.0}
    assert fields_of(read(GENERATIONS, **chosen)) == chosen
    assert fields_of(read(VIDEOS, **chosen)) == chosen
    assert fields_of(read(GENERATIONS, lenient=True, sampler="unipc")) == {"scheduler": "unipc"}


def test_a_field_of_another_vendors_video_api_is_refused_with_what_to_send() -> None:
    assert fields_of(read(VIDEOS, n=1.0, aspect_ratio="", watermark=False)) == {}
    assert fields_of(read(VIDEOS, lenient=True, duration=4)) == {"seconds": 4}
    others: list[tuple[str, Any, str]] = [
        ("duration", 4, "send seconds"),
        ("n", 2, "one clip"),
        ("image_url", IMAGE, "send input_reference"),
        ("aspect_ratio", "16:9", "send size"),
    ]
    for name, value, remedy in others:
        error = refused(VIDEOS, **{name: value})
        assert error.param == name
        assert remedy in error.message


def test_under_warn_a_field_of_another_vendors_api_is_read_or_ignored_and_reported() -> None:
    checked = read(GENERATIONS, lenient=True, steps="8", batch_size=2, n=3, aspect_ratio="16:9")
    assert fields_of(checked) == {"num_inference_steps": 8, "n": 3}
    assert [(warning.param, warning.code) for warning in checked.warnings] == [
        ("steps", "adjusted"),
        ("batch_size", "unsupported_field"),
        ("aspect_ratio", "unsupported_field"),
    ]


@pytest.mark.parametrize(
    ("seed", "taken", "meaning"),
    [(-1, None, "as if left out"), ("7", 7, "as 7"), (2**64 - 1, 2**53 - 1, f"as {2**53 - 1}")],
)
def test_a_refused_seed_names_the_header_that_has_it_read(seed: Any, taken: int | None, meaning: str) -> None:
    for path in (GENERATIONS, "/generate", "/jobs", VIDEOS):
        error = refused(path, seed=seed)
        assert error.param == "seed"
        assert f"(with the header X-Unsupported-Fields: warn it is read {meaning})" in error.message
        checked = read(path, lenient=True, seed=seed)
        assert fields_of(checked).get("seed") == taken
        assert [warning.param for warning in checked.warnings] == ([] if seed == "7" else ["seed"])
    assert "X-Unsupported-Fields" not in refused(GENERATIONS, seed=-2).message
    assert "X-Unsupported-Fields" not in refused(GENERATIONS, lenient=True, seed=-2).message


@pytest.mark.parametrize(
    "pictures",
    [
        {"image": IMAGE},
        {"image": [IMAGE]},
        {"image": {"url": IMAGE, "type": "image_url"}},
        {"images": [IMAGE]},
        {"images": [{"image_url": IMAGE}]},
        {"images": [{"image_url": {"url": IMAGE}}]},
        {"images": [{"type": "image_url", "image_url": {"url": IMAGE, "detail": "high"}}]},
        {"images": [{"type": "input_image", "image_url": IMAGE}]},
        {"images": [{"b64_json": IMAGE}]},
        {"image": IMAGE, "image_urls": None},
        {"image": None, "image_urls": [IMAGE]},
    ],
)
def test_a_picture_is_found_in_whatever_object_it_comes(pictures: dict[str, Any]) -> None:
    checked = read(EDITS, mask={"image_url": {"url": IMAGE}}, **pictures)
    body = checked.content
    assert isinstance(body, ImageEdit)
    assert (body.image_urls, body.mask_url) == (["upload:0"], "upload:1")
    assert checked.uploads == (IMAGE, IMAGE)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"image": 7}, "image"),
        ({"image": {"url": 7}}, "image.url"),
        ({"images": [{"image_url": {"url": IMAGE}}, {"image_url": {"url": 7}}]}, "images.1.image_url.url"),
        ({"images": [{"picture": IMAGE}]}, "images.0"),
        ({"images": [{"file_id": "file-1"}]}, "images.0.file_id"),
        ({"images": [None]}, "images.0"),
        ({"images": ["upload:0"]}, "images.0"),
        ({"image": [IMAGE] * 17}, "image"),
        ({"image_urls": 7}, "image_urls"),
        ({"image_urls": 7, "image": IMAGE}, "image_urls"),
        ({"image": IMAGE, "mask": {"image_url": 7}}, "mask.image_url"),
        ({"image": IMAGE, "mask_url": 7}, "mask_url"),
    ],
)
def test_an_error_names_a_picture_as_it_was_sent(fields: dict[str, Any], param: str) -> None:
    error = refused(EDITS, **fields)
    assert error.param == param
    assert error.message.startswith(f"{param}:") or f"{param} " in error.message
    assert "image_urls" in fields or "image_urls" not in error.message


def test_a_video_begins_with_a_picture_in_whatever_object_it_comes() -> None:
    for reference in (IMAGE, {"image_url": IMAGE}, {"image_url": {"url": IMAGE}}, [{"image_url": IMAGE}]):
        assert fields_of(read(VIDEOS, input_reference=reference)) == {"image_urls": ["upload:0"]}
    assert refused(VIDEOS, input_reference={"image_url": 7}).param == "input_reference.image_url"


def test_dall_e_answers_by_url_unless_asked_otherwise() -> None:
    def by_url(**fields: Any) -> bool:
        body = read(GENERATIONS, **fields).content
        assert isinstance(body, ImageGeneration)
        return body.wants_urls

    assert by_url(model="dall-e-3")
    assert by_url(model="dall-e-2", response_format="")
    assert by_url(response_format="url")
    assert not by_url(model="dall-e-3", response_format="b64_json")
    assert not by_url(model="dall-e-3", stream=True)
    assert not by_url(model="gpt-image-1")
    assert not by_url()
