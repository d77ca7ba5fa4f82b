"""OpenAI's own SDK against the routes below /v1."""

from __future__ import annotations

import asyncio
import base64
import io
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import openai
import pytest
import requests
from openai.types import Image as SdkImage
from openai.types import ImagesResponse, Model
from PIL import Image

from tests.support.answers import metric
from tests.support.images import apple, file_of, mask
from tests.support.jobs import submitted
from tests.support.jobs_events import follow
from tests.support.openai_sdk import is_strictly, sdk
from tests.support.server import ROOT, Server

pytestmark = pytest.mark.slow

PROMPT = "a red apple on a blue background"
EXTRAS: dict[str, Any] = {"seed": 5, "num_inference_steps": 6}


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return sdk(server)


def picture(image: SdkImage | bytes) -> Image.Image:
    content = image if isinstance(image, bytes) else base64.b64decode(image.b64_json or "")
    return Image.open(io.BytesIO(content))


def test_the_model_is_listed(client: openai.OpenAI, server: Server, rich: Server) -> None:
    (model,) = client.models.list().data
    assert model.id == server.get("/get_model_info").json()["model"]
    assert client.models.retrieve(model.id) == model
    is_strictly(server.get(f"/v1/models/{model.id}").json(), Model)
    assert [model.id for model in sdk(rich).models.list()] == ["gpt-image-1", "dall-e-2", "dall-e-3", "flux"]


def test_a_picture_is_that_of_generate(client: openai.OpenAI, server: Server) -> None:
    expected = server.generate(**EXTRAS, width=112, height=96, num_images=2).json()["images"]
    answer = client.images.generate(prompt=PROMPT, n=2, size="112x96", extra_body=EXTRAS)
    assert [image.b64_json for image in answer.data or ()] == expected
    assert answer.size == "112x96"
    assert abs(answer.created - time.time()) < 60
    raw = client.images.with_raw_response.generate(prompt=PROMPT, size="auto", extra_body=EXTRAS | {"speed": "fast"})
    told = raw.http_response.json()
    is_strictly(told, ImagesResponse)
    evidence = told["cache_dit"]
    assert evidence["seeds"] == [5]
    assert evidence["cache"]["engaged"]
    assert raw.headers["x-cache-engaged"] == "true"
    assert raw.headers["x-cache-speed"] == "fast"
    assert int(raw.headers["x-cache-cached-steps"]) == evidence["cache"]["cached_steps"] > 0
    assert raw.headers["x-cache-steps"] == "6"
    assert raw.headers["x-request-id"] == evidence["request_id"]


def test_formats_and_urls(client: openai.OpenAI, server: Server) -> None:
    for extension in ("png", "jpeg", "webp"):
        compression = openai.omit if extension == "png" else 50
        answer = client.images.generate(
            prompt=PROMPT,
            output_format=extension,
            output_compression=compression,
            response_format="url",
            extra_body=EXTRAS,
        )
        assert answer.data is not None
        (image,) = answer.data
        assert (image.url or "").startswith(f"{server.url}/outputs/")
        fetched = requests.get(image.url or "", timeout=60)
        assert picture(fetched.content).format == extension.upper()
        assert answer.output_format == extension


def test_what_has_no_effect_is_told(client: openai.OpenAI) -> None:
    raw = client.images.with_raw_response.generate(
        prompt=PROMPT, output_compression=100, style="vivid", moderation="auto", user="someone", extra_body=EXTRAS
    )
    warnings = raw.http_response.json()["cache_dit"]["warnings"]
    assert [(warning["param"], warning["code"]) for warning in warnings] == [
        ("style", "unsupported_field"),
        ("output_compression", "no_effect"),
    ]


@pytest.mark.parametrize(
    ("quality", "speed"), [("low", "fast"), ("medium", "balanced"), ("high", "high"), ("max", "lossless")]
)
def test_a_quality_draws_at_its_speed(client: openai.OpenAI, server: Server, quality: Any, speed: str) -> None:
    expected = server.generate(**EXTRAS, speed=speed).json()
    raw = client.images.with_raw_response.generate(prompt=PROMPT, quality=quality, extra_body=EXTRAS)
    told = raw.http_response.json()
    is_strictly(told, ImagesResponse)
    assert [image["b64_json"] for image in told["data"]] == expected["images"]
    assert (told["quality"], told["cache_dit"]["cache"]["speed"]) == (quality, speed)
    assert told["cache_dit"]["cache"]["cached_steps"] == expected["cache"]["cached_steps"]
    assert told["cache_dit"]["warnings"] == []
    (event,) = client.images.generate(prompt=PROMPT, quality=quality, stream=True, extra_body=EXTRAS)
    assert (event.quality, event.b64_json) == (quality, expected["images"][0])


def test_a_speed_goes_before_a_quality(client: openai.OpenAI) -> None:
    raw = client.images.with_raw_response.generate(
        prompt=PROMPT, quality="low", extra_body=EXTRAS | {"speed": "lossless"}
    )
    told = raw.http_response.json()
    assert (told["quality"], told["cache_dit"]["cache"]["speed"]) == ("max", "lossless")
    assert [warning["param"] for warning in told["cache_dit"]["warnings"]] == ["quality"]


def test_as_many_pictures_as_openai_draws(client: openai.OpenAI) -> None:
    answer = client.images.generate(prompt=PROMPT, n=10, extra_body=EXTRAS | {"num_inference_steps": 1})
    assert len(answer.data or ()) == 10


@pytest.mark.parametrize(
    ("fields", "param", "sentence"),
    [
        ({"size": "huge"}, "size", "WIDTHxHEIGHT"),
        ({"size": "97x96"}, "size", "is not a size"),
        ({"background": "transparent"}, "background", "opaque"),
        ({"n": 0}, "n", "1"),
        ({"n": 99}, "n", "n is 99; this server draws at most 10"),
        ({"n": 2, "extra_body": {"seed": 2**53 - 1}}, "seed", "seed + n - 1"),
        ({"extra_body": {"steps": 5}}, "steps", "is not a field"),
        ({"extra_body": {"aspect_ratio": "16:9"}}, "aspect_ratio", "send size"),
        ({"extra_body": {"cache": {"colour": 1}}}, "cache.colour", "colour"),
        ({"extra_body": {"guidance_scale": -1}}, "guidance_scale", "0"),
        ({"output_format": "gif"}, "output_format", "png"),
    ],
)
def test_what_is_wrong_raises_the_sdks_own_error(
    client: openai.OpenAI, fields: dict[str, Any], param: str, sentence: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.images.generate(**{"prompt": PROMPT} | fields)
    assert refused.value.param == param
    assert refused.value.type == "invalid_request_error"
    assert sentence in refused.value.message
    assert refused.value.response.headers["x-should-retry"] == "false"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # OpenAI's own models have no variations any more
def test_other_errors_are_the_sdks_own_too(client: openai.OpenAI, rich: Server) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.images.generate(prompt=PROMPT, model="gpt-image-7")
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    assert sdk(rich).images.generate(prompt=PROMPT, model="flux", extra_body=EXTRAS).data
    with pytest.raises(openai.BadRequestError, match="variations are not supported"):
        client.images.create_variation(image=file_of(apple()))
    with pytest.raises(openai.BadRequestError, match="makes no video"):
        client.videos.create(prompt=PROMPT)
    with pytest.raises(openai.ConflictError):
        client.images.generate(
            prompt=PROMPT, extra_body={"num_inference_steps": 1, "speed": "balanced", "cache": {"strict": True}}
        )
    with pytest.raises(openai.APIStatusError) as late:
        client.images.generate(prompt=PROMPT, extra_body={"num_inference_steps": 100, "deadline_s": 0.001})
    assert late.value.status_code == 504


def test_edits_by_upload_and_by_json(client: openai.OpenAI, server: Server) -> None:
    content, hole = file_of(apple()), file_of(mask())
    as_text = [f"data:image/png;base64,{base64.b64encode(each).decode()}" for each in (content, hole)]
    strength: dict[str, Any] = EXTRAS | {"strength": 0.6}
    asked = {"prompt": PROMPT, "image_urls": [as_text[0]]} | strength
    plain = server.post("/generate", json=asked).json()["images"]
    masked = server.post("/generate", json=asked | {"mask_url": as_text[1]}).json()["images"]
    assert plain != masked
    upload = ("apple.png", content, "image/png")
    answer = client.images.edit(image=upload, prompt=PROMPT, extra_body=strength)
    assert [image.b64_json for image in answer.data or ()] == plain
    answer = client.images.edit(image=[upload], mask=("m.png", hole, "image/png"), prompt=PROMPT, extra_body=strength)
    assert [image.b64_json for image in answer.data or ()] == masked
    nested: dict[str, Any] = strength | {"cache": {"enabled": False}, "loras": []}
    answer = client.images.edit(image=upload, prompt=PROMPT, extra_body=nested)
    assert answer.to_dict()["cache_dit"]["cache"]["enabled"] is False  # type: ignore[index]
    for body in (
        {"image": as_text[0], "mask": as_text[1]},
        {"images": [{"image_url": as_text[0]}], "mask": {"image_url": as_text[1]}},
        {"images": [{"image_url": {"url": as_text[0]}}], "mask": {"image_url": {"url": as_text[1]}}},
    ):
        told = server.post("/v1/images/edits", json={"prompt": PROMPT} | body | strength)
        assert [image["b64_json"] for image in told.json()["data"]] == masked
        is_strictly(told.json(), ImagesResponse)
    with pytest.raises(openai.BadRequestError) as unread:
        client.images.edit(image=[upload, b"no picture"], prompt=PROMPT)
    assert unread.value.param == "image.1"
    unread_json = server.post("/v1/images/edits", json={"prompt": PROMPT, "images": [{"image_url": {"url": "AAAA"}}]})
    assert unread_json.json()["error"]["param"] == "images.0.image_url.url"
    refused = server.post("/v1/images/edits", json={"prompt": PROMPT})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "image")


@pytest.mark.parametrize(
    ("parts", "param", "sentence"),
    [
        ([("seed[x]", "1")], "seed", "no fields of its own"),
        ([("cache[enabled]", "false"), ("cache[enabled]", "true")], "cache", "stands twice"),
        ([("cache[colour]", "1")], "cache.colour", "colour"),
        ([("cache", "7"), ("cache[enabled]", "true")], "cache", "no fields of its own"),
        ([("loras[name]", "x")], "loras", "loras"),
        ([("loras[][name]", "a"), ("loras[][scale]", "0.5"), ("loras[][name]", "b")], "loras", "does not take loras"),
    ],
)
def test_objects_in_a_form(server: Server, parts: list[tuple[str, str]], param: str, sentence: str) -> None:
    form = [("prompt", (None, PROMPT)), *((name, (None, value)) for name, value in parts)]
    refused = server.post("/v1/images/generations", files=form)
    assert refused.status_code == 400, refused.text
    assert (refused.json()["error"]["param"] or "").startswith(param)
    assert sentence in refused.json()["error"]["message"]


def test_a_mask_that_is_transparent_where_it_is_drawn_anew(client: openai.OpenAI, server: Server) -> None:
    hole = mask().convert("L")
    with_alpha = apple().convert("RGBA")
    with_alpha.putalpha(hole.point(lambda value: 255 - value))
    strength: dict[str, Any] = EXTRAS | {"strength": 0.6}
    edits = [
        client.images.edit(
            image=("apple.png", file_of(apple()), "image/png"),
            mask=("m.png", file_of(each), "image/png"),
            prompt=PROMPT,
            extra_body=strength,
        )
        for each in (hole, with_alpha)
    ]
    first, second = (picture((edit.data or [])[0]).tobytes() for edit in edits)
    assert first == second


SLOWER: dict[str, Any] = EXTRAS | {"num_inference_steps": 12, "speed": "lossless"}


@pytest.fixture(scope="module")
def slower(server: Server) -> str:
    """The picture of the request above, by /generate."""
    return str(server.generate(**SLOWER).json()["images"][0])


@pytest.mark.parametrize("wanted", [0, 1, 2, 3])
def test_a_stream_has_as_many_previews_as_asked_and_the_same_picture(
    client: openai.OpenAI, slower: str, wanted: int
) -> None:
    events = list(client.images.generate(prompt=PROMPT, stream=True, partial_images=wanted, extra_body=SLOWER))
    assert [event.type for event in events] == [
        *["image_generation.partial_image"] * wanted,
        "image_generation.completed",
    ]
    for event in events:
        type(event).model_validate({k: v for k, v in event.to_dict().items() if k != "cache_dit"}, strict=True)
    partial, last = [event.to_dict() for event in events[:-1]], events[-1].to_dict()
    assert [event["partial_image_index"] for event in partial] == list(range(wanted))
    assert len({event["b64_json"] for event in partial}) == wanted
    assert all(picture(base64.b64decode(str(event["b64_json"]))).format == "WEBP" for event in partial)
    assert last["b64_json"] == slower
    assert last["cache_dit"]["seeds"] == [5]  # type: ignore[index]
    assert last["cache_dit"]["warnings"] == []  # type: ignore[index]


def test_a_stream_of_edits_has_previews(client: openai.OpenAI) -> None:
    upload = ("apple.png", file_of(apple()), "image/png")
    asked: dict[str, Any] = EXTRAS | {"strength": 0.6, "num_inference_steps": 12}
    events = list(client.images.edit(image=upload, prompt=PROMPT, stream=True, partial_images=2, extra_body=asked))
    assert [event.type for event in events] == [*["image_edit.partial_image"] * 2, "image_edit.completed"]


def test_a_stream_of_several_images_has_previews_of_all(client: openai.OpenAI) -> None:
    events = list(client.images.generate(prompt=PROMPT, n=2, stream=True, partial_images=3, extra_body=SLOWER))
    assert [event.type.removeprefix("image_generation.") for event in events] == [
        *["partial_image"] * 3,
        *["completed"] * 2,
    ]


def test_a_stream_with_fewer_steps_than_previews_says_so(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = EXTRAS | {"num_inference_steps": 2}
    first, last = client.images.generate(prompt=PROMPT, stream=True, partial_images=3, extra_body=asked)
    assert first.type == "image_generation.partial_image"
    (warning,) = last.to_dict()["cache_dit"]["warnings"]  # type: ignore[index]
    assert (warning["param"], warning["code"]) == ("partial_images", "adjusted")
    assert "1 of 3" in warning["message"]


def test_a_server_that_makes_no_previews_refuses_them_by_name(limited: Server) -> None:
    asked: dict[str, Any] = {"prompt": PROMPT, "stream": True, "partial_images": 2, "extra_body": EXTRAS}
    with pytest.raises(openai.BadRequestError, match="previews") as refused:
        sdk(limited).images.generate(**asked)
    assert refused.value.param == "partial_images"
    assert "previews.allow" in refused.value.message
    asked["extra_headers"] = {"X-Unsupported-Fields": "warn"}
    (event,) = sdk(limited).images.generate(**asked)
    (warning,) = event.to_dict()["cache_dit"]["warnings"]
    assert (warning["param"], warning["code"]) == ("partial_images", "unsupported_field")
    job = submitted(limited, num_inference_steps=8)
    answer = limited.get(f"{job}/events?previews=2")
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "previews"
    assert "previews.allow" in answer.json()["error"]["message"]
    kinds = [event.kind for event in follow(limited, job, previews=2, lenient=True)]
    assert kinds.count("warning") == 1
    assert "preview" not in kinds


def test_an_error_in_a_stream_is_raised_and_a_client_that_goes_stops_it(client: openai.OpenAI, server: Server) -> None:
    with pytest.raises(openai.BadRequestError):
        client.images.generate(prompt=PROMPT, stream=True, size="huge")
    slow: dict[str, Any] = {"num_inference_steps": 100, "speed": "lossless"}
    never = {"cache": {"strict": True, "residual_diff_threshold": 1e-6}}
    with pytest.raises(openai.APIError, match="reused no step"):  # which is known once it is drawn
        list(client.images.generate(prompt=PROMPT, stream=True, extra_body=EXTRAS | never))
    drawn = metric(server, "cache_dit_serving_images_total")
    stream = client.images.generate(prompt=PROMPT, n=8, stream=True, extra_body=slow)
    stream.response.close()
    server.wait_until_idle()
    assert metric(server, "cache_dit_serving_images_total") < drawn + 8


def test_many_at_once_by_the_async_client(server: Server) -> None:
    async def draw() -> list[ImagesResponse]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            asked = [client.images.generate(prompt=PROMPT, extra_body=EXTRAS | {"seed": seed % 2}) for seed in range(6)]
            return await asyncio.gather(*asked)

    pictures = [(answer.data or [])[0].b64_json for answer in asyncio.run(draw())]
    assert len(set(pictures)) == 2
    assert pictures[0] == pictures[2] == pictures[4]


@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
def test_the_node_sdk_draws_too(server: Server, tmp_path: Path) -> None:
    installed = subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", "--silent", "openai@6"],
        cwd=tmp_path,
        capture_output=True,
        timeout=240,
        check=False,
    )
    if installed.returncode:
        pytest.skip("npm cannot install the SDK here")
    shutil.copy(ROOT / "tests" / "http" / "openai_client.mjs", tmp_path / "client.mjs")
    (tmp_path / "apple.png").write_bytes(file_of(apple()))
    done = subprocess.run(
        ["node", "client.mjs", f"{server.url}/v1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == [
        "generated",
        "edited",
        "image_generation.partial_image",
        "image_generation.completed",
        "400",
    ]
