"""Open event streams, counted by caller."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from cache_dit_serving.errors import RateLimited

RETRY_S = 10.0
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
"""For proxies and browsers: an event is passed on when it comes."""


class Followers:
    """The open event streams of this worker, each of which costs the event loop time at every step."""

    def __init__(self, most: int) -> None:
        """
        Args:
            most: streams of one caller at a time.
        """
        self._most = most
        self._open: Counter[str] = Counter()

    @contextmanager
    def one_more(self, caller: str) -> Iterator[None]:
        """Count a stream while it is open.

        Raises:
            RateLimited: the caller has as many as it may.
        """
        if self._open[caller] >= self._most:
            raise RateLimited(
                f"{self._most} event streams of this caller are open, as many as it may have "
                "(limits.max_followers); close some, or ask GET /jobs/{id} now and then",
                retry_after_s=RETRY_S,
            )
        self._open[caller] += 1
        try:
            yield
        finally:
            self._open[caller] -= 1
            if not self._open[caller]:
                del self._open[caller]


class EventStream(StreamingResponse):
    """Server-sent events to one follower, who is counted from the answer's beginning to its end."""

    def __init__(self, events: AsyncIterator[bytes], followers: Followers, caller: str) -> None:
        super().__init__(events, media_type="text/event-stream", headers=HEADERS)
        self._followers = followers
        self._caller = caller

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._followers.one_more(self._caller):
            await super().__call__(scope, receive, send)
