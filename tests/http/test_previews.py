"""Previews among the events of jobs over HTTP."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.jobs import PROMPT, submitted
from tests.support.jobs_events import Told, follow
from tests.support.server import Server, ready, serving

ASKED: dict[str, Any] = {"num_inference_steps": 40, "seed": 11, "speed": "lossless"}


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


@pytest.mark.parametrize("by", ["projection", "vae"])
def test_previews_show_what_is_drawn_and_change_nothing_of_it(server: Server, tmp_path: Path, by: str) -> None:
    plain = server.generate(**ASKED).json()["images"][0]
    variables = {"EVERY": "2", "BY": by, "SIDE": "64"}
    environ = {f"CACHE_DIT_SERVING__PREVIEWS__{key}": value for key, value in variables.items()}
    with serving(tmp_path, environ=environ) as previewing:
        previewing.wait_for(ready)
        job = submitted(previewing, **ASKED)
        told = list(follow(previewing, job))
        [drawn] = previewing.get(job).json()["outputs"]
        assert previewing.get(drawn).content == base64.b64decode(plain)
        assert previewing.generate(**ASKED).json()["images"][0] == plain
    shown = previews_of(told)
    assert len(shown) > 5
    steps = [event.data["step"] for event in shown]
    assert steps == sorted(set(steps))
    assert all(step % 2 == 0 and step < 40 for step in steps)
    for event in shown:
        assert event.number is None
        assert (event.data["steps"], event.data["format"]) == (40, "webp")
        image = image_of(event.data["image"])
        assert (image.format, image.size) == ("WEBP", (64, 64))
    assert likeness(image_of(shown[-1].data["image"]), image_of(plain)) > 0.9
    assert told[-1].data["state"] == "succeeded"


def test_a_job_has_no_previews_unless_they_are_configured(server: Server) -> None:
    told = list(follow(server, submitted(server, **ASKED)))
    assert previews_of(told) == []


def test_a_follower_that_joins_later_gets_the_latest_once(tmp_path: Path) -> None:
    environ = {"CACHE_DIT_SERVING__PREVIEWS__EVERY": "60"}
    with serving(tmp_path, environ=environ) as server:
        server.wait_for(ready)
        job = submitted(server, prompt=PROMPT, num_inference_steps=100, speed="lossless")
        first = follow(server, job)
        seen = next(event for event in first if event.kind == "preview")
        later = previews_of(list(follow(server, job)))
        assert [event.data["step"] for event in later] == [60]
        assert later[0].data == seen.data
        assert previews_of(list(first)) == []
        assert previews_of(list(follow(server, job))) == []  # it has ended
