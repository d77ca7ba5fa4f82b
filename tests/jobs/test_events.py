"""What followers of a job are told."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel

from cache_dit_serving.jobs.events import STRIDE, Event, events_of
from cache_dit_serving.schemas.jobs import JobMoment, JobProgress, JobState
from tests.support.jobs import QUEUED, RUNNING, record


def kinds(events: list[Event]) -> list[str]:
    return [event.kind.value for event in events]


def test_of_progress_the_latest_is_told_and_of_the_states_all() -> None:
    running = record("one", QUEUED, RUNNING, step=3, cached_steps=1, seconds_left=2.0)
    events = events_of(running, 0)
    assert kinds(events) == ["state", "state", "progress"]
    assert json.loads(events[-1].data) == {"step": 3, "steps": 10, "cached_steps": 1, "seconds_left": 2.0}
    assert json.loads(events[0].data) == {"state": "queued", "at": "1970-01-01T00:16:40.000Z"}
    seen = events[-1].number
    assert seen is not None
    assert events_of(running, seen) == []
    assert kinds(events_of(record("one", QUEUED, RUNNING, step=4), seen)) == ["progress"]


def test_an_event_is_written_as_json_once_for_all_its_followers(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    for model in (JobMoment, JobProgress):

        def dump(self: BaseModel, dump: Any = model.model_dump_json) -> str:
            written.append(dump(self))
            return written[-1]

        monkeypatch.setattr(model, "model_dump_json", dump)
    at = 2000.25  # of no other test
    history = ((QUEUED, at), (RUNNING, at + 1))
    for step in (3, 4):
        running = record("one", history=history, step=step, seconds_left=at)
        heard = {tuple(event.data for event in events_of(running, 0)) for _ in range(64)}
        assert len(heard) == 1
    assert len(written) == len(set(written)) == 4


def test_the_end_comes_after_all_and_whoever_comes_again_hears_what_it_missed() -> None:
    ended = record("one", QUEUED, RUNNING, JobState.SUCCEEDED, step=10, result='{"seeds":[1]}')
    events = events_of(ended, 2 * STRIDE + 9)
    assert kinds(events) == ["result", "state"]
    assert events[0].data == '{"seeds":[1]}'
    assert kinds(events_of(ended, events[0].number or 0)) == ["state"]
    assert events_of(ended, events[-1].number or 0) == []
    failed = record("one", QUEUED, JobState.FAILED, error='{"code":"x"}')
    assert kinds(events_of(failed, 0)) == ["state", "failure", "state"]


def test_a_job_that_is_queued_again_counts_on() -> None:
    first = events_of(record("one", QUEUED, RUNNING, step=7), 0)[-1].number
    again = events_of(record("one", QUEUED, RUNNING, QUEUED, RUNNING, step=1), first or 0)
    assert kinds(again) == ["state", "state", "progress"]


def test_numbers_grow() -> None:
    events = events_of(record("one", QUEUED, RUNNING, QUEUED, RUNNING, JobState.CANCELLED), 0)
    numbers = [event.number or 0 for event in events]
    assert numbers == sorted(set(numbers))
