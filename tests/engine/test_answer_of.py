"""The answer about a job, by its record."""

from __future__ import annotations

import pytest

from cache_dit_serving.engine.job_answers import answer_of
from cache_dit_serving.schemas.jobs import JobState
from tests.support.jobs import QUEUED, RUNNING, record

PROGRESS = {"step": 3, "steps": 9, "cached_steps": 2}
ESTIMATES = {"position": 4, "starts_in_s": 1.5, "seconds_left": 2.5}


@pytest.mark.parametrize(
    ("states", "shown"),
    [
        ((QUEUED,), {"position": 4, "starts_in_s": 1.5}),
        ((QUEUED, RUNNING), {"seconds_left": 2.5}),
        ((QUEUED, RUNNING, JobState.CANCELLED), {}),
    ],
)
def test_estimates_are_shown_in_their_state_alone(states: tuple[JobState, ...], shown: dict[str, float]) -> None:
    answer = answer_of(record("one", *states, **PROGRESS, **ESTIMATES)).model_dump()
    assert answer["id"] == "one"
    assert answer["state"] is states[-1]
    assert {name: answer[name] for name in PROGRESS} == PROGRESS
    assert {name: answer[name] for name in ESTIMATES} == dict.fromkeys(ESTIMATES) | shown


def test_files_are_shown_as_routes_and_an_error_as_it_was() -> None:
    failed = '{"code": "internal_error", "message": "m", "type": "server_error", "request_id": "", "param": null}'
    answer = answer_of(record("one", QUEUED, JobState.FAILED, files=("a/0.png", "a/1.png"), error=failed))
    assert answer.outputs == ["/jobs/one/outputs/0", "/jobs/one/outputs/1"]
    assert answer.error is not None
    assert answer.error.message == "m"
    assert answer.result is None
