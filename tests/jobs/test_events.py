"""What followers of a job are told."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Callable, Coroutine

from cache_dit_serving.errors import InternalError
from cache_dit_serving.jobs.events import Event, Events
from cache_dit_serving.jobs.generation import Generation
from cache_dit_serving.jobs.job import Job
from cache_dit_serving.schemas.jobs import EventKind, JobProgress
from tests.support.records import FAST, call


def in_a_loop(test: Callable[[], Coroutine[None, None, None]]) -> Callable[[], None]:
    return functools.wraps(test)(lambda: asyncio.run(test()))


async def followed(events: Events, number: int = 0) -> list[Event | None]:
    """What there is at once, and None where more is to come."""
    found: list[Event | None] = []
    async for event in events.after(number, silence_s=0.01):
        found.append(event)
        if event is None:
            break
    return found


def numbers(found: list[Event | None]) -> list[int | None]:
    return [event.number if event else None for event in found]


def progress(step: int) -> JobProgress:
    return JobProgress(step=step, steps=10)


@in_a_loop
async def test_of_progress_the_latest_is_kept_and_of_the_rest_all() -> None:
    events = Events()
    events.add(EventKind.STATE, progress(0))
    for step in (1, 2, 3):
        events.add(EventKind.PROGRESS, progress(step))
    assert numbers(await followed(events)) == [1, 4, None]
    assert numbers(await followed(events, 1)) == [4, None]
    assert numbers(await followed(events, 4)) == [None]
    events.add(EventKind.RESULT, progress(4))
    events.add(EventKind.STATE, progress(4), final=True)
    assert numbers(await followed(events)) == [1, 4, 5, 6]
    assert numbers(await followed(events, 6)) == []


def test_all_followers_hear_of_each_event_as_it_comes() -> None:
    async def follow(events: Events) -> list[int | None]:
        return numbers([event async for event in events.after(0, silence_s=5)])

    async def run() -> list[list[int | None]]:
        events = Events()
        followers = [asyncio.create_task(follow(events)) for _ in range(3)]
        for step in range(5):
            await asyncio.sleep(0)
            events.add(EventKind.PROGRESS, progress(step))
            await asyncio.sleep(0.01)
        events.add(EventKind.STATE, progress(5), final=True)
        return await asyncio.wait_for(asyncio.gather(*followers), 5)

    assert asyncio.run(run()) == [[1, 2, 3, 4, 5, 6]] * 3


def test_an_event_as_it_stands_in_the_stream() -> None:
    assert Event(3, EventKind.PROGRESS, "{}").encoded() == b"id: 3\nevent: progress\ndata: {}\n\n"
    assert Event(None, EventKind.POSITION, "{}").encoded() == b"event: position\ndata: {}\n\n"


@in_a_loop
async def test_a_job_tells_its_states_each_step_once_and_why_it_failed() -> None:
    generation = Generation("a", call(FAST))
    job = Job("one", generation)
    job.tell()
    assert numbers(await followed(job.events)) == [1, None]
    generation.started = generation.submitted + 1
    generation.step, generation.cached_steps = 3, 1
    job.tell(2.04)
    job.tell(2.04)
    job.fail(InternalError())
    told = [(event.kind, json.loads(event.data)) for event in await followed(job.events) if event]
    assert [data["state"] for kind, data in told if kind is EventKind.STATE] == ["queued", "running", "failed"]
    [step] = [data for kind, data in told if kind is EventKind.PROGRESS]
    assert step == {"step": 3, "steps": job.progress.steps, "cached_steps": 1, "seconds_left": 2.0}
    assert [data["code"] for kind, data in told if kind is EventKind.FAILURE] == ["internal_error"]
    assert told[-1][0] is EventKind.STATE
