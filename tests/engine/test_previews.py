"""The previews of a job as one of its followers gets them."""

from __future__ import annotations

import json

from cache_dit_serving.engine.previews import AskedPreviews, FollowedPreviews
from cache_dit_serving.jobs.generation import Generation
from cache_dit_serving.schemas.jobs import JobPreview, JobState
from tests.support.jobs import QUEUED, RUNNING, record
from tests.support.records import FAST, call

AS_MANY_AS_THE_SERVER_MAKES = AskedPreviews(None)


def preview(step: int) -> JobPreview:
    return JobPreview(step=step, steps=100, image="")


def with_preview(step: int) -> Generation:
    generation = Generation("one", call(FAST, steps=100))
    generation.show(preview(step), ())
    return generation


def shown(follower: FollowedPreviews, generation: Generation, *states: JobState) -> list[int]:
    """The steps of the previews that a follower gets at one look at a job that came into these states."""
    follower.look(generation)
    events = follower.events(record("one", *states))
    return [json.loads(event.data)["step"] for event in events]


def test_a_follower_that_joins_later_gets_the_latest_once() -> None:
    generation = with_preview(60)
    follower = FollowedPreviews(AS_MANY_AS_THE_SERVER_MAKES)
    looks = [shown(follower, generation, QUEUED, RUNNING) for _ in range(2)]
    generation.show(preview(80), ())
    assert [*looks, shown(follower, generation, QUEUED, RUNNING)] == [[60], [], [80]]


def test_there_are_none_of_a_job_that_waits_or_has_ended() -> None:
    generation = with_preview(60)
    for states in ([QUEUED], [QUEUED, RUNNING, JobState.SUCCEEDED], [QUEUED, RUNNING, JobState.CANCELLED]):
        assert shown(FollowedPreviews(AS_MANY_AS_THE_SERVER_MAKES), generation, *states) == []


def test_a_follower_that_wants_none_gets_none() -> None:
    generation = with_preview(60)
    assert shown(FollowedPreviews(AskedPreviews(0)), generation, QUEUED, RUNNING) == []
