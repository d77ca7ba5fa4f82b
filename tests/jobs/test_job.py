"""The states of a job."""

from __future__ import annotations

import pytest

from cache_dit_serving.errors import ClientGone, DeadlineExceeded, InternalError, ServingError
from cache_dit_serving.jobs.generation import Generation
from cache_dit_serving.jobs.job import Job
from cache_dit_serving.schemas.jobs import JobState
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
    job = Job("one", Generation("a", call(FAST)))
    job.generation.started = job.generation.submitted + 1
    assert [state for state, _ in job.history] == [JobState.QUEUED, JobState.RUNNING]
    job.fail(error)
    assert job.state is state
    assert job.done.is_set()
    assert (job.error is None) is (state is JobState.CANCELLED)
    with pytest.raises(AssertionError, match="a job ends once"):
        job.fail(error)


def test_a_generation_that_begins_while_its_job_is_cancelled_is_no_longer_told() -> None:
    job = Job("one", Generation("a", call(FAST)))
    job.fail(ClientGone(""))
    job.generation.started = job.history[-1][1] + 1
    assert [state for state, _ in job.history] == [JobState.QUEUED, JobState.CANCELLED]
