"""The states of a job."""

from __future__ import annotations

import json

import pytest

from cache_dit_serving.errors import ClientGone, DeadlineExceeded, InternalError, ServingError
from cache_dit_serving.jobs.generation import Generation
from cache_dit_serving.jobs.job import Job, failed, queued_again, succeeded
from cache_dit_serving.schemas.jobs import JobState
from tests.support.jobs import QUEUED, RUNNING, record
from tests.support.records import FAST, call


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (ClientGone(""), JobState.CANCELLED),
        (DeadlineExceeded("late"), JobState.EXPIRED),
        (InternalError(), JobState.FAILED),
    ],
)
def test_an_error_says_in_which_state_a_job_ends(error: ServingError, state: JobState) -> None:
    ended = failed(record("one", QUEUED, RUNNING), error)
    assert ended.state is state
    assert (ended.error is None) is (state is JobState.CANCELLED)
    assert ended.error is None or json.loads(ended.error)["message"] == error.message
    with pytest.raises(AssertionError, match="a job ends once"):
        failed(ended, error)
    with pytest.raises(AssertionError, match="a job ends once"):
        succeeded(ended, "{}", ())


def test_a_job_runs_once_its_generation_has_started() -> None:
    generation = Generation("a", call(FAST))
    job = Job(record(attempts=1), generation)
    assert job.record == job.admitted
    assert generation.begin()
    generation.progress(3, 1)
    now = job.record
    assert now.history == ((QUEUED, 1000.0), (RUNNING, generation.started))
    assert (now.step, now.cached_steps, now.attempts) == (3, 1, 2)


def test_a_job_is_queued_again_from_its_beginning() -> None:
    again = queued_again(record("one", QUEUED, RUNNING, step=5, cached_steps=2, attempts=1))
    assert [state for state, _ in again.history] == [QUEUED, RUNNING, QUEUED]
    assert (again.step, again.cached_steps, again.attempts) == (0, 0, 1)
