"""Previews among the events of jobs over HTTP."""

from __future__ import annotations

import base64
import io
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from tests.support.answers import error
from tests.support.jobs import LONG, PROMPT, submitted
from tests.support.jobs_events import Told, follow
from tests.support.server import Server

pytestmark = pytest.mark.slow

STEPS = 20
ASKED: dict[str, Any] = {"num_inference_steps": STEPS, "seed": 11, "speed": "lossless"}


def image_of(encoded: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(encoded)))


def likeness(one: Image.Image, other: Image.Image) -> float:
    """Correlation of two pictures at 32 x 32."""
    first, second = (
        np.asarray(image.convert("RGB").resize((32, 32), Image.Resampling.BOX), dtype=float).ravel()
        for image in (one, other)
    )
    return float(np.corrcoef(first, second)[0, 1])


def previews_of(told: list[Told]) -> list[Told]:
    return [event for event in told if event.kind == "preview"]


def followed(server: Server, *wanted: int | None, **fields: Any) -> tuple[str, list[list[Told]]]:
    """A job, and its events as followers from its beginning on get them, who want so many previews each."""
    before = submitted(server, **LONG)
    job = submitted(server, **fields)
    followers = [follow(server, job, previews=count) for count in wanted]
    told = [[next(each)] for each in followers]
    server.session.delete(server.url + before)
    return job, [[*first, *each] for first, each in zip(told, followers, strict=True)]


@pytest.fixture(scope="module")
def plain(server: Server) -> str:
    """The picture of ASKED, by /generate."""
    return str(server.generate(**ASKED).json()["images"][0])


def test_previews_show_what_is_drawn_and_change_nothing_of_it(rich: Server) -> None:
    """By the autoencoder, every other step and small, as the operator has it."""
    asked = ASKED | {"num_inference_steps": 30}  # a preview is left out while the one before is made
    plain = rich.generate(**asked).json()["images"][0]
    job = submitted(rich, **asked)
    told = list(follow(rich, job))
    [drawn] = rich.get(job).json()["outputs"]
    assert rich.get(drawn).content == base64.b64decode(plain)
    assert rich.generate(**asked).json()["images"][0] == plain
    shown = previews_of(told)
    assert len(shown) > 2  # one is made only when the one before is done
    steps = [event.data["step"] for event in shown]
    assert steps == sorted(set(steps))
    assert all(step % 2 == 0 and step < 30 for step in steps)
    for event in shown:
        assert event.number is None
        assert (event.data["steps"], event.data["format"]) == (30, "webp")
        image = image_of(event.data["image"])
        assert (image.format, image.size) == ("WEBP", (64, 64))
        assert b"trainedAlgorithmicMedia" in image.info["xmp"]
    assert likeness(image_of(shown[-1].data["image"]), image_of(plain)) > 0.9
    assert told[-1].data["state"] == "succeeded"


@pytest.mark.parametrize(("wanted", "steps", "like"), [(4, [4, 8, 12, 16], 0.8), (9, [*range(2, STEPS, 2)], 0.9)])
def test_a_follower_gets_as_many_as_it_asks_for_and_the_picture_is_the_same(
    server: Server, plain: str, wanted: int, steps: list[int], like: float
) -> None:
    """By the projection, as is usual."""
    job, (told,) = followed(server, wanted, **ASKED)
    assert [event.data["step"] for event in previews_of(told)] == steps
    assert likeness(image_of(previews_of(told)[-1].data["image"]), image_of(plain)) > like
    assert [event.kind for event in told][-2:] == ["result", "state"]
    assert "warning" not in {event.kind for event in told}
    [drawn] = server.get(job).json()["outputs"]
    assert server.get(drawn).content == base64.b64decode(plain)


def test_followers_share_previews_and_one_that_asks_for_none_gets_none(server: Server) -> None:
    _, told = followed(server, 4, 4, 0, None, **ASKED)
    shown = [previews_of(each) for each in told]
    assert [len(each) for each in shown] == [4, 4, 0, 0]
    assert shown[0] == shown[1]


def test_a_job_of_fewer_steps_than_previews_says_so(server: Server) -> None:
    _, (told,) = followed(server, 20, num_inference_steps=3)
    assert [event.data["step"] for event in previews_of(told)] == [1, 2]
    [warning] = [event.data for event in told if event.kind == "warning"]
    assert (warning["param"], warning["code"]) == ("previews", "adjusted")
    assert "2 of 20" in warning["message"]


@pytest.fixture(scope="module")
def short(server: Server) -> str:
    return submitted(server, num_inference_steps=3)


@pytest.mark.parametrize("count", ["true", "-1", "21", "1.5", "", "9" * 5000, "\u0663"])
def test_what_is_no_number_of_previews_is_refused_by_name(server: Server, short: str, count: str) -> None:
    answer = server.get(f"{short}/events?previews={quote(count)}")
    assert error(answer, 400)["param"] == "previews"


def test_a_follower_that_joins_later_is_shown_what_the_first_is(rich: Server) -> None:
    job = submitted(rich, prompt=PROMPT, num_inference_steps=48, speed="lossless")
    first = follow(rich, job)
    seen = [next(event for event in first if event.kind == "preview")]
    later = previews_of(list(follow(rich, job)))
    seen += previews_of(list(first))
    by_step = {event.data["step"]: event.data for event in seen}
    shared = [event.data for event in later if event.data["step"] in by_step]
    assert len(shared) > 5  # a follower misses those that the loop is late for
    assert all(data == by_step[data["step"]] for data in shared)
    assert previews_of(list(follow(rich, job))) == []  # it has ended
