"""When the previews that a follower wants are due."""

from __future__ import annotations

import pytest

from cache_dit_serving.jobs.wanted_previews import WantedPreviews, spread
from cache_dit_serving.schemas.jobs import JobPreview


def preview(step: int) -> JobPreview:
    return JobPreview(step=step, steps=40, image="")


@pytest.mark.parametrize(
    ("count", "steps", "images", "due"),
    [
        (2, 30, 1, [10, 20]),
        (3, 4, 1, [1, 2, 3]),
        (3, 3, 1, [1, 2]),
        (1, 1, 1, []),
        (1, 8, 2, [9]),
        (20, 2, 3, [1, 3, 5]),
        (0, 8, 1, []),
    ],
)
def test_previews_are_spread_over_the_steps_that_a_picture_does_not_follow(
    count: int, steps: int, images: int, due: list[int]
) -> None:
    assert spread(count, steps, images) == due


@pytest.mark.parametrize("images", [1, 2, 5])
@pytest.mark.parametrize("steps", range(1, 30))
def test_there_are_as_many_as_wanted_where_the_steps_allow(steps: int, images: int) -> None:
    for count in range(21):
        due = spread(count, steps, images)
        assert len(due) == len(set(due)) == min(count, images * (steps - 1))
        assert due == sorted(due)
        assert all(step % steps for step in due)


def test_those_that_a_late_follower_missed_are_one_and_no_fault() -> None:
    wanted = WantedPreviews(4, 40, 1, step=30)
    assert [step for step in range(31, 40) if wanted.is_due(step)] == [31, 32]
    for step in (31, 32):
        wanted.add(preview(step))
    assert [each.step for each in wanted.take()] == [31, 32]
    assert wanted.take() == []
    assert wanted.missing("previews") == []
    assert WantedPreviews(4, 40, 1, step=39).missing("previews") == []


def test_those_that_could_not_be_made_are_told() -> None:
    wanted = WantedPreviews(2, 30, 1)
    assert wanted.is_due(10)
    wanted.add(None)
    [warning] = wanted.missing("partial_images")
    assert warning.param == "partial_images"
    assert "2 of 2 previews could not be made" in warning.message
