"""Videos by OpenAI's own SDK, of a tiny Wan with random weights."""

from __future__ import annotations

import base64
import io
from typing import Any

import av
import openai
import pytest
import requests
from openai.types import Video, VideoDeleteResponse

from tests.support.openai_sdk import is_strictly, sdk
from tests.support.server import Server

# OpenAI ends its own service of these routes; here they stay.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:The Sora API")]
PROMPT = "a red apple rolls over a table"
EXTRAS: dict[str, Any] = {"seed": 3, "num_inference_steps": 4}


@pytest.fixture
def client(wan: Server) -> openai.OpenAI:
    return sdk(wan)


def is_video(answer: dict[str, Any]) -> None:
    """Holds an answer to the SDK's type, but for the size: it lists those of OpenAI's own models."""
    is_strictly(answer | {"size": "720x1280"}, Video)


def test_a_clip_is_made_found_fetched_and_forgotten(client: openai.OpenAI, wan: Server) -> None:
    expected = wan.post("/generate", json={"prompt": PROMPT, "num_frames": 9} | EXTRAS).json()["video"]
    made = client.videos.create(prompt=PROMPT, extra_body=EXTRAS | {"num_frames": 9})
    assert (made.object, made.prompt) == ("video", PROMPT)
    assert made.status in ("queued", "in_progress")
    is_video(wan.get(f"/v1/videos/{made.id}").json())
    done = client.videos.poll(made.id, poll_interval_ms=100)
    assert (done.status, done.progress, done.size) == ("completed", 100, "32x32")
    assert (done.completed_at or 0) >= done.created_at
    assert (done.expires_at or 0) == (done.completed_at or 0) + 86400
    told = wan.get(f"/v1/videos/{made.id}").json()
    is_video(told)
    assert told["cache_dit"]["seeds"] == [3]
    content = client.videos.download_content(made.id).read()
    assert av.open(io.BytesIO(content)).streams.video[0].frames == 9
    assert len(content) == len(base64.b64decode(expected))
    part = requests.get(f"{wan.url}/v1/videos/{made.id}/content", headers={"Range": "bytes=4-7"}, timeout=60)
    assert (part.status_code, part.content) == (206, content[4:8])
    assert wan.get(f"/jobs/{made.id}").json()["state"] == "succeeded"
    deleted = client.videos.delete(made.id)
    assert deleted.deleted
    is_strictly(deleted.to_dict(), VideoDeleteResponse)
    with pytest.raises(openai.NotFoundError):
        client.videos.retrieve(made.id)


def test_seconds_are_the_nearest_frames(client: openai.OpenAI) -> None:
    video = client.videos.create(prompt=PROMPT, seconds="4", size="32x32", extra_body=EXTRAS)  # type: ignore[arg-type]
    assert video.seconds == "4"  # 65 frames at 16 a second
    client.videos.delete(video.id)
    for fields, param in (
        ({"seconds": "long"}, "seconds"),
        ({"seconds": "0"}, "seconds"),
        ({"seconds": "4", "extra_body": {"num_frames": 9}}, "seconds"),
        ({"size": "big"}, "size"),
        ({"extra_body": {"fps": 0}}, "fps"),
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            client.videos.create(prompt=PROMPT, **fields)
        assert refused.value.param == param


def test_pages(client: openai.OpenAI) -> None:
    for video in client.videos.list():  # of other modules
        client.videos.delete(video.id)
    made = [client.videos.create(prompt=PROMPT, extra_body=EXTRAS | {"num_frames": 9}).id for _ in range(3)]
    assert [video.id for video in client.videos.list(limit=2)] == made[::-1]  # both pages
    assert [video.id for video in client.videos.list(limit=2, order="asc")] == made
    page = client.videos.list(limit=2)
    assert (page.has_more, page.last_id) == (True, made[1])
    for name in ("video_0", "video_\0", "\0"):
        with pytest.raises(openai.BadRequestError):
            client.videos.list(after=name)
    for name in made:
        client.videos.delete(name)
    assert client.videos.list().data == []


def test_what_is_not_there_or_not_supported(client: openai.OpenAI, wan: Server) -> None:
    with pytest.raises(openai.NotFoundError):
        client.videos.retrieve("video_000")
    job = wan.post("/jobs", json={"prompt": PROMPT, "num_frames": 9} | EXTRAS).json()["id"]
    with pytest.raises(openai.NotFoundError):
        client.videos.retrieve(job)
    slow = client.videos.create(prompt=PROMPT, extra_body={"num_inference_steps": 100})
    with pytest.raises(openai.NotFoundError, match="no outputs"):
        client.videos.download_content(slow.id)
    assert client.videos.delete(slow.id).deleted
    with pytest.raises(openai.BadRequestError, match="cannot be remixed"):
        client.videos.remix(slow.id, prompt=PROMPT)
    with pytest.raises(openai.BadRequestError, match="video alone"):
        client.videos.download_content(slow.id, variant="thumbnail")
    with pytest.raises(openai.BadRequestError, match="makes no pictures"):
        client.images.generate(prompt=PROMPT)
    with pytest.raises(openai.BadRequestError) as refused:  # this model begins with no picture
        client.videos.create(prompt=PROMPT, input_reference=("a.png", b"no picture", "image/png"))
    assert refused.value.param == "input_reference"
