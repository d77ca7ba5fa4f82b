"""Server-sent events, https://html.spec.whatwg.org/#server-sent-events: their bytes, and answers that stream them."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from cache_dit_serving.errors import RateLimited

MEDIA_TYPE = "text/event-stream"
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
"""Headers by which proxies and browsers pass an event on when it comes."""
HEART_BEAT_S = 10.0
"""Seconds without an event after which a stream has a heart-beat."""
RETRY_S = 10.0
"""`Retry-After` of a caller with too many streams, seconds."""


def event(kind: str, data: str, number: int | None = None) -> bytes:
    """Return one event of a stream.

    Args:
        data: JSON, which has no line break.
        number: its id, which an EventSource sends as `Last-Event-ID` when it reconnects; None: it has none.
    """
    identity = "" if number is None else f"id: {number}\n"
    return f"{identity}event: {kind}\ndata: {data}\n\n".encode()


def heart_beat() -> bytes:
    """Return a comment, which readers ignore and which keeps connections open."""
    return b": heart-beat\n\n"


def retry(milliseconds: int) -> bytes:
    """Return the line that sets how long an EventSource waits before it reconnects."""
    return f"retry: {milliseconds}\n\n".encode()


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
    """Server-sent events to one client."""

    def __init__(self, events: AsyncIterator[bytes], counted: AbstractContextManager[None] | None = None) -> None:
        """
        Args:
            counted: held from the answer's beginning to its end, as by :meth:`Followers.one_more`.
        """
        super().__init__(events, media_type=MEDIA_TYPE, headers=HEADERS)
        self._counted = counted or nullcontext()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._counted:
            await super().__call__(scope, receive, send)


def no_events() -> Response:
    """Return the answer of a HEAD request: the headers of a stream."""
    return Response(media_type=MEDIA_TYPE, headers=HEADERS)
