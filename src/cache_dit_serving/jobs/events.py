"""What befalls a job, as its followers are told of it: server-sent events, https://html.spec.whatwg.org/#sse."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from pydantic import BaseModel

from cache_dit_serving.schemas.jobs import EventKind


@dataclass(frozen=True)
class Event:
    """One event, which a follower that has seen its number does not get again."""

    number: int | None
    """From 1; None: it says what is so at the moment, and is not kept."""
    kind: EventKind
    data: str
    """JSON."""

    def encoded(self) -> bytes:
        """As a stream of `text/event-stream` has it."""
        number = "" if self.number is None else f"id: {self.number}\n"
        return f"{number}event: {self.kind}\ndata: {self.data}\n\n".encode()


class Events:
    """All events of one job but those that a later one of their kind makes pointless. For one event loop."""

    def __init__(self) -> None:
        self._kept: list[Event] = []
        self._last = 0
        self._ended = False
        self._added = asyncio.Event()

    @property
    def last(self) -> int:
        """Number of the latest one."""
        return self._last

    @property
    def ended(self) -> bool:
        """Whether none follows."""
        return self._ended

    def add(self, kind: EventKind, data: BaseModel, *, final: bool = False) -> None:
        """Tell all followers.

        Args:
            final: it is the last one.
        """
        assert not self._ended, "an event after the last one"
        self._last += 1
        self._ended = final
        if not kind.kept:
            self._kept = [event for event in self._kept if event.kind is not kind]
        self._kept.append(Event(self._last, kind, data.model_dump_json()))
        # Whoever waits has this one; whoever comes later waits for the next.
        self._added.set()
        self._added = asyncio.Event()

    async def after(self, number: int, *, silence_s: float) -> AsyncIterator[Event | None]:
        """Those with a higher number, as they come, to the last one; None whenever none came for `silence_s`.

        A follower that is slower than the job misses what has become pointless meanwhile, and nothing is kept for it.
        """
        while True:
            added = self._added
            for event in [each for each in self._kept if each.number is not None and each.number > number]:
                assert event.number is not None
                number = event.number
                yield event
            if self._ended and number >= self._last:
                return
            if added is not self._added:
                continue
            try:
                await asyncio.wait_for(added.wait(), silence_s)
            except TimeoutError:
                yield None
