"""The states of a job."""

from __future__ import annotations

import weakref

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
    generation = Generation("a", call(FAST))
    job = Job("one", generation)
    generation.started = generation.submitted + 1
    assert [state for state, _ in job.history] == [JobState.QUEUED, JobState.RUNNING]
    job.fail(error)
    assert job.state is state
    assert job.done.is_set()
    assert (job.error is None) is (state is JobState.CANCELLED)
    with pytest.raises(AssertionError, match="a job ends once"):
        job.fail(error)


def test_a_job_that_has_ended_keeps_no_generation_and_tells_of_it_as_it_was() -> None:
    generation = Generation("a", call(FAST))
    job = Job("one", generation)
    generation.step = 3
    job.fail(ClientGone(""))
    generation.started, generation.step = job.history[-1][1] + 1, 4  # it may begin while its job is cancelled
    assert [state for state, _ in job.history] == [JobState.QUEUED, JobState.CANCELLED]
    assert job.progress.step == 3
    kept = weakref.ref(generation)
    del generation
    assert kept() is None
