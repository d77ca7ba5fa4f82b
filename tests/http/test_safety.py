"""A server whose operator checks prompts and outputs: nothing that is refused is delivered, by any route."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from PIL import Image

from tests.support.answers import error, metric, pixels
from tests.support.images import apple, data_uri, file_of
from tests.support.jobs import ended, submitted
from tests.support.jobs_events import follow
from tests.support.openai_sdk import sdk
from tests.support.safety_server import KEY, SafetyServer, safety_server
from tests.support.server import Server, options, ready, serving
from tests.support.video_server import serving_wan

pytestmark = pytest.mark.slow

STEPS = {"num_inference_steps": 3, "seed": 3}
COMPARED = {"num_inference_steps": 10, "seed": 3, "speed": "fast"}
PROMPTS, OUTPUTS = {"subject": "prompt"}, {"subject": "output"}
NAME = "cache_dit_serving_safety_checks_total"


@pytest.fixture(scope="module")
def check() -> Iterator[SafetyServer]:
    with safety_server() as running:
        yield running


@pytest.fixture(scope="module")
def checked(check: SafetyServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    environ = options(
        SAFETY__CHECK=check.address,
        SAFETY__KEY=KEY,
        SAFETY__TIMEOUT_S=4,
        SERVER__MODEL_NAMES=["flux"],
        WEBHOOKS__HOSTS=[check.webhook_url.removeprefix("http://").removesuffix("/told")],
        WEBHOOKS__NETWORKS=["127.0.0.0/8"],
        WEBHOOKS__SECRET=f"whsec_{base64.b64encode(bytes(32)).decode()}",
    )
    with serving(tmp_path_factory.mktemp("checked"), environ=environ) as running:
        running.wait_for(ready)
        yield running


def asked(prompt: str, **fields: Any) -> dict[str, Any]:
    return {"prompt": prompt, **STEPS, **fields}


def test_what_is_allowed_is_the_same_picture_as_without_a_check(
    checked: Server, check: SafetyServer, server: Server
) -> None:
    check.bodies.clear()
    check.keys.clear()
    plain, allowed = (each.post("/generate", json=asked("a cat", num_images=2)) for each in (server, checked))
    assert allowed.json()["images"] == plain.json()["images"]
    assert "warnings" not in allowed.json() or not allowed.json()["warnings"]
    (prompt,) = check.of("prompt")
    assert prompt["texts"]["prompt"] == "a cat"
    outputs = sorted(check.of("output"), key=lambda body: body["index"])
    files = [base64.b64decode(image) for image in plain.json()["images"]]
    assert [body["sha256"] for body in outputs] == [hashlib.sha256(file).hexdigest() for file in files]
    assert {(body["kind"], body["media_type"], body["request_id"]) for body in outputs} == {
        ("image", "image/png", allowed.json()["request_id"])
    }
    assert check.keys == {f"Bearer {KEY}"}


def test_a_refused_prompt_reaches_no_queue_by_any_route(checked: Server) -> None:
    before = metric(checked, "cache_dit_serving_generations_total"), metric(checked, NAME, verdict="refuse", **PROMPTS)
    body = asked("refuse-prompt please")
    edit = asked("refuse-prompt please", image_urls=[data_uri(file_of(apple()))])
    for route, fields in (("/generate", body), ("/generate", edit), ("/compare", body | COMPARED), ("/jobs", body)):
        refused = error(checked.post(route, json=fields), 400)
        assert (refused["code"], refused["param"]) == ("content_policy_violation", "prompt")
        assert refused["message"] == "this server's safety check refused the prompt: not drawn here"
    client = sdk(checked)
    with pytest.raises(openai.BadRequestError) as by_sdk:
        client.images.generate(model="flux", prompt="refuse-prompt please")
    assert by_sdk.value.code == "content_policy_violation"
    after = metric(checked, "cache_dit_serving_generations_total"), metric(checked, NAME, verdict="refuse", **PROMPTS)
    assert (after[0] - before[0], after[1] - before[1]) == (0, 5)


def test_a_text_in_another_field_is_checked_too(checked: Server, check: SafetyServer) -> None:
    check.bodies.clear()
    fields = {"negative_prompt": "a dog", "true_cfg_scale": 2.0, "extra_args": {"prompt_2": "a bird"}}
    assert checked.post("/generate", json=asked("a cat", **fields)).status_code == 200
    assert check.of("prompt")[0]["texts"] == {"prompt": "a cat", "negative_prompt": "a dog", "prompt_2": "a bird"}


def test_a_refused_output_is_delivered_by_no_route(checked: Server) -> None:
    body = asked("refuse-output please")
    for route, fields in (("/generate", body | {"num_images": 2}), ("/compare", body | COMPARED)):
        refused = error(checked.post(route, json=fields), 400)
        assert (refused["code"], refused["message"]) == (
            "content_policy_violation",
            "this server's safety check refused an output: not drawn here",
        )
    with pytest.raises(openai.BadRequestError) as by_sdk:
        sdk(checked).images.generate(model="flux", prompt="refuse-output please")
    assert by_sdk.value.code == "content_policy_violation"
    job = ended(checked, submitted(checked, **body))
    assert (job["state"], job["error"]["code"]) == ("failed", "content_policy_violation")
    assert not job.get("outputs")


def test_nothing_of_outputs_is_left_behind_where_one_of_them_is_refused(checked: Server, check: SafetyServer) -> None:
    def files() -> set[Path]:
        return {path for path in checked.outputs.rglob("*") if path.suffix == ".png"}

    before = files()
    body = asked("refuse-second please", num_images=2)
    job = submitted(checked, **body, webhook_url=check.webhook_url)
    events = list(follow(checked, job))
    assert events[-1].data["state"] == "failed"
    assert {event.kind for event in events} <= {"state", "progress", "failure"}
    assert not any(event.data.get("outputs") for event in events)
    for index in (0, 1):
        assert checked.get(f"{job}/outputs/{index}").status_code == 404
    told = check.told.get(timeout=120)
    assert (told["type"], told["data"]["error"]["code"]) == ("job.failed", "content_policy_violation")
    assert not told["data"].get("outputs")
    assert error(checked.post("/generate", json=body | {"output_format": "url"}), 400)
    assert files() == before


def test_a_stream_and_a_form_deliver_nothing_refused(checked: Server) -> None:
    client, picture = sdk(checked), file_of(apple())
    with pytest.raises(openai.APIError, match="refused an output"):
        list(client.images.generate(model="flux", prompt="refuse-output please", stream=True))
    for word, what in (("refuse-prompt", "prompt"), ("refuse-output", "output")):
        with pytest.raises(openai.BadRequestError, match=what):
            client.images.edit(model="flux", image=("apple.png", picture), prompt=f"{word} please")
        form = checked.post("/generate", data={"prompt": f"{word} please", **STEPS}, files={"image_urls": picture})
        assert error(form, 400)["code"] == "content_policy_violation"


@pytest.mark.filterwarnings("ignore:The Sora API is scheduled:DeprecationWarning")
def test_a_refused_video_is_not_delivered(check: SafetyServer, tmp_path: Path) -> None:
    with serving_wan(tmp_path, SAFETY__CHECK=check.address) as checked_wan:
        client = sdk(checked_wan)
        with pytest.raises(openai.BadRequestError) as refused:
            client.videos.create(prompt="refuse-prompt please", size="32x32")  # type: ignore[arg-type]
        assert refused.value.code == "content_policy_violation"
        made = client.videos.create_and_poll(prompt="refuse-output please", size="32x32")  # type: ignore[arg-type]
        assert made.error is not None
        assert (made.status, made.error.code) == ("failed", "content_policy_violation")
        with pytest.raises(openai.APIStatusError):
            client.videos.download_content(made.id)
        assert not [path for path in checked_wan.outputs.rglob("*") if path.suffix == ".mp4"]
        assert client.videos.create_and_poll(prompt="a cat", size="32x32").status == "completed"  # type: ignore[arg-type]


def test_a_blank_output_takes_the_place_of_what_was_made_and_that_is_told(checked: Server) -> None:
    for name in ("png", "webp"):
        answer = checked.post("/generate", json=asked("blank please", image_format=name)).json()
        picture = Image.open(io.BytesIO(base64.b64decode(answer["images"][0])))
        assert (picture.format, picture.size) == (name.upper(), (96, 96))
        assert not np.asarray(picture.convert("RGB")).any()
        (warning,) = answer["warnings"]
        assert (warning["param"], warning["code"]) == ("prompt", "blanked")
        assert warning["message"].endswith("what was made: not drawn here")
    job = submitted(checked, **asked("blank please"))
    (output,) = ended(checked, job)["outputs"]
    assert not np.asarray(Image.open(io.BytesIO(checked.get(output).content)).convert("RGB")).any()
    compared = checked.post("/compare", json=asked("blank please") | COMPARED).json()
    sides = [compared["cached"]["image"], compared["uncached"]["image"], compared["difference"]]
    assert not any(pixels(side).any() for side in sides), "a difference shows what was made"
    assert compared["identical"]


@pytest.mark.parametrize("word", ["broken", "no-json", "slow"])
def test_without_a_verdict_nothing_is_drawn(checked: Server, word: str) -> None:
    before = metric(checked, NAME, verdict="error", **PROMPTS)
    answer = checked.post("/generate", json=asked(f"{word} please"))
    assert error(answer, 503)["code"] == "safety_check_failed"
    assert int(answer.headers["Retry-After"]) > 0
    assert metric(checked, NAME, verdict="error", **PROMPTS) == before + 1


def test_previews_show_nothing_before_the_check(checked: Server) -> None:
    job = submitted(checked, **asked("a cat", num_inference_steps=20))
    refused = error(checked.get(f"{job}/events?previews=2"), 400)
    assert refused["param"] == "previews"
    assert "safety check" in refused["message"]
    assert "preview" not in [event.kind for event in follow(checked, job, previews=2, lenient=True)]
    with pytest.raises(openai.BadRequestError, match="safety check"):
        sdk(checked).images.generate(model="flux", prompt="a cat", stream=True, partial_images=1)
