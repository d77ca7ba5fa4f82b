"""Server-sent events: their bytes, and streams counted by caller."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from cache_dit_serving.api import sse
from cache_dit_serving.api.sse import EventStream, Followers
from cache_dit_serving.errors import RateLimited


def test_events_comments_and_the_retry_line_as_they_stand_in_a_stream() -> None:
    assert sse.event("progress", "{}", 3) == b"id: 3\nevent: progress\ndata: {}\n\n"
    assert sse.event("position", "{}") == b"event: position\ndata: {}\n\n"
    assert sse.heart_beat() == b": heart-beat\n\n"
    assert sse.retry(2000) == b"retry: 2000\n\n"


async def one_event() -> AsyncIterator[bytes]:
    yield sse.event("position", "{}")


def test_events_are_passed_on_as_they_come() -> None:
    for answer in (EventStream(one_event()), sse.no_events()):
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-accel-buffering"] == "no"


def test_a_caller_follows_so_many_jobs_at_a_time_and_another_as_many() -> None:
    followers = Followers(2)
    with followers.one_more("a"):
        with followers.one_more("a"):
            with pytest.raises(RateLimited, match="max_followers"), followers.one_more("a"):
                pass
            with followers.one_more("b"):
                pass
        with followers.one_more("a"):
            pass


@pytest.mark.parametrize("leaves", [True, False])
def test_a_stream_counts_until_it_ends_or_its_follower_leaves(leaves: bool) -> None:
    followers = Followers(1)

    async def follow() -> None:
        left = asyncio.Event()

        async def events() -> AsyncIterator[bytes]:
            yield b"event: state\n\n"
            if leaves:
                await asyncio.Event().wait()

        async def receive() -> Any:
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message.get("body"):
                with pytest.raises(RateLimited), followers.one_more("a"):
                    pass
                if leaves:
                    left.set()

        await EventStream(events(), followers.one_more("a"))({"type": "http"}, receive, send)

    asyncio.run(asyncio.wait_for(follow(), 60))
    with followers.one_more("a"):
        pass
