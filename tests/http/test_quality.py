"""Shadow runs and floors over real HTTP: the embedded model, and cached outputs that lie beyond a floor on purpose."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cache_dit_serving.measure.distances.outputs import distance
from cache_dit_serving.media.values import ImageOutput
from tests.support.answers import metric, pixels
from tests.support.images import apple, data_uri, file_of
from tests.support.jobs import ended, submitted
from tests.support.server import Server, free_port, options, ready, serving
from tests.support.waiting import ASK_S, wait_until
from tests.support.webhook_receiver import Receiver

pytestmark = pytest.mark.slow

PROMPT = "a red apple on a blue background"
FIELDS = {"num_inference_steps": 12, "image_format": "png"}


@pytest.fixture(scope="module")
def receiver() -> Receiver:
    return Receiver(free_port())


@pytest.fixture(scope="module")
def environ(receiver: Receiver) -> dict[str, str]:
    """A server that draws every cached output again, with a floor that no cached output of `fast` can hold."""
    return receiver.environ | options(
        SHADOW__WEBHOOK_URL=receiver.url,
        SHADOW__SHARE=1,
        SHADOW__AT_MOST=1,
        SHADOW__KEEP=True,
        SPEEDS__FAST__FLOORS={"ssim": 1.0},
        SPEEDS__HIGH__FLOORS={"ssim": 0.1},
        MODEL__LORAS=[{"name": "monochrome", "path": "embedded/monochrome", "scale": 0}],
    )


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory, environ: dict[str, str]) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("judged"), environ=environ) as server:
        server.wait_for(ready)
        yield server


def quality(server: Server) -> dict[str, Any]:
    answer = server.get("/quality")
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def compared(server: Server, speed: str) -> int:
    return sum(each["outputs"] for each in quality(server)["evidence"] if each["speed"] == speed)


def draw(server: Server, **fields: Any) -> dict[str, Any]:
    answer = server.generate(**FIELDS, **fields)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def codes(answer: dict[str, Any]) -> list[str]:
    return [warning["code"] for warning in answer["warnings"]]


def test_a_speed_that_misses_its_floor_is_lowered_told_of_and_offered_again(judged: Server, receiver: Receiver) -> None:
    with receiver.listening():
        lowered_and_offered_again(judged)
        messages = [message for _, message in receiver.wait(2)]
    assert [message["type"] for message in messages] == ["speed.lowered", "speed.restored"]
    told = messages[0]["data"]
    assert (told["speed"], told["instead"], told["missed"]) == ("fast", "balanced", ["ssim"])


def lowered_and_offered_again(judged: Server) -> None:
    assert quality(judged)["speeds"]["fast"]["status"] == "unknown"
    pictures: list[str] = []
    while quality(judged)["speeds"]["fast"]["lowered_to"] is None:
        answer = draw(judged, seed=len(pictures), speed="fast")
        assert answer["cache"]["speed"] == "fast"
        pictures.append(answer["images"][0])
        wait_until(lambda: compared(judged, "fast") == len(pictures), 180, look_s=ASK_S)
        assert len(pictures) < 12, quality(judged)
    answer = quality(judged)
    assert answer["speeds"]["fast"]["status"] == "missed"
    assert answer["speeds"]["fast"]["lowered_to"] == "balanced"
    assert answer["speeds"]["balanced"]["status"] == "unwatched"
    (evidence,) = [each for each in answer["evidence"] if each["speed"] == "fast"]
    assert evidence["outputs"] == len(pictures)
    assert evidence["current"]
    assert 0 < evidence["distances"]["ssim"]["median"] < 1
    assert evidence["cached_steps"] > 0
    assert list(answer["environments"]) == [evidence["environment"]]

    # Who asks for it gets the next one, and is told; who is strict is refused.
    lowered = draw(judged, seed=0, speed="fast")
    assert codes(lowered) == ["speed_lowered"]
    assert lowered["cache"]["speed"] == "balanced"
    assert np.array_equal(pixels(lowered["images"][0]), pixels(draw(judged, seed=0, speed="balanced")["images"][0]))
    refused = judged.generate(**FIELDS, speed="fast", cache={"strict": True})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "speed_lowered")
    assert refused.json()["error"]["param"] == "speed"
    job = ended(judged, submitted(judged, **FIELDS, speed="fast"))
    assert codes(job["result"]) == ["speed_lowered"]
    own = draw(judged, seed=0, cache={"residual_diff_threshold": 0.3})
    assert codes(own) == []
    assert metric(judged, "cache_dit_serving_speed_lowered", speed="fast") == 1
    assert "live traffic misses the floor of speed fast (ssim)" in judged.log()

    # It comes back by the operator's word, with the pictures of before.
    for name in ("balanced", "nonsense"):
        assert judged.post(f"/quality/{name}").status_code == 400
    assert judged.post("/quality/fast").json()["speeds"]["fast"]["lowered_to"] is None
    again = draw(judged, seed=0, speed="fast")
    assert codes(again) == []
    assert again["images"] == pictures[:1]


def test_what_is_kept_is_shown_and_repeats_the_pair(judged: Server) -> None:
    draw(judged, seed=77, speed="high")
    wait_until(lambda: compared(judged, "high") > 0, 180, look_s=ASK_S)
    (evidence,) = [each for each in quality(judged)["evidence"] if each["speed"] == "high"]
    (newest, *_) = evidence["newest"]
    contents = [judged.session.get(url) for url in newest["files"]]
    assert [each.status_code for each in contents] == [200, 200, 200]
    assert len({each.content for each in contents}) == 3
    assert newest["distances"]["ssim"] < 1
    assert evidence["worst"][0]["request_id"] == newest["request_id"]


@pytest.mark.parametrize(
    "fields",
    [{"image_urls": [data_uri(file_of(apple()))], "strength": 0.8}, {"loras": [{"name": "monochrome", "scale": 0.7}]}],
    ids=["a picture", "a LoRA"],
)
def test_inputs_and_loras_are_drawn_again_and_measured_as_a_comparison_does(
    judged: Server, fields: dict[str, Any]
) -> None:
    fields = fields | {"seed": 41, "cache": {"residual_diff_threshold": 0.4}}
    drawn = draw(judged, **fields)

    def newest() -> list[dict[str, Any]]:
        shown = [each for evidence in quality(judged)["evidence"] for each in evidence["newest"]]
        return [each for each in shown if each["request_id"] == drawn["request_id"]]

    (found,) = wait_until(newest, look_s=ASK_S)
    answer = judged.post("/compare", json={"prompt": PROMPT, **FIELDS, **fields}).json()
    cached, uncached = (pixels(answer[side]["image"]) for side in ("cached", "uncached"))
    assert np.array_equal(pixels(drawn["images"][0]), cached)
    assert found["cached_steps"] == answer["cached"]["cache"]["cached_steps"] > 0
    exact = distance(ImageOutput(cached), ImageOutput(uncached))
    for name in ("ssim", "psnr_db", "flip"):
        assert found["distances"][name] == pytest.approx(getattr(exact, name), abs=2e-6)
    assert found["distances"]["ssim"] == pytest.approx(answer["ssim"], abs=5e-3)
    again = np.asarray(Image.open(io.BytesIO(judged.session.get(found["files"][1]).content)).convert("RGB"))
    assert np.array_equal(again, uncached)
