"""A request apart from its connection."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from cache_dit_serving.engine.caller import SCOPES, Caller
from cache_dit_serving.engine.intake import Intake, read
from cache_dit_serving.engine.sent_as import SentAs
from cache_dit_serving.schemas.answers import RequestWarning
from cache_dit_serving.schemas.request import JobRequest
from tests.support.jobs import record


def intake() -> Intake:
    return Intake(
        JobRequest(prompt="a cat", seed=7),
        "one",
        lenient=True,
        warnings=(RequestWarning(param="n", code="adjusted", message="m"),),
        uploads=("text", b"\0bytes"),
        base_url="http://server:3000",
        caller=Caller("key", SCOPES),
        sent_as=SentAs({"seed": "input.seed"}, {"images": "image"}),
        mask_kind="holed mask",
    )


def test_a_kept_request_comes_back_whole() -> None:
    kept = intake()
    assert read(kept.dumped(), list(kept.uploads)) == kept


def test_a_job_reads_its_request_in_the_layout_that_was_written() -> None:
    job = record(request=intake().dumped())
    assert job.asked == {"prompt": "a cat", "seed": 7}
    assert job.base_url == "http://server:3000"


def test_a_request_of_another_version_still_says_what_was_asked() -> None:
    older = {name: json.loads(intake().dumped())[name] for name in ("request", "base_url")}
    assert record(request=json.dumps(older)).asked["prompt"] == "a cat"
    with pytest.raises(ValidationError):
        read(json.dumps(older), [])
