"""Arrival of requests: users who wait for their answers, or a rate that does not wait."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

from cache_dit_serving.measure.load.client import now
from cache_dit_serving.measure.load.outcome import Outcome

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0
"""Pause of a user after an error without `Retry-After`, seconds: doubled by each error, up to the longest."""


@dataclass(frozen=True, slots=True)
class Closed:
    """Closed loop: users who each send their next request once the last is answered."""

    users: int


@dataclass(frozen=True, slots=True)
class Open:
    """Open loop: requests that arrive at random (Poisson), whether or not earlier ones are answered."""

    rate: float
    """Requests per second, on average."""


Load = Closed | Open


@dataclass(frozen=True, slots=True)
class Bounds:
    """Bounds of one point."""

    requests: int
    duration_s: float
    """Seconds after which no request is sent. Those in flight are waited for."""
    in_flight: int
    """Requests in flight at most. An arrival above it waits in the client, and its latency counts that."""


Send = Callable[[int, float, float], Awaitable[Outcome]]
"""Send request `number`, intended at a time, of a point that began at a time. It raises nothing but cancellation."""


def arrivals(rate: float, seed: int) -> Iterator[float]:
    """Yield the times of a Poisson process, seconds from its start. The same seed gives the same times."""
    chance = random.Random(f"arrivals {seed}")
    at = 0.0
    while True:
        at += chance.expovariate(rate)
        yield at


class Point:
    """One run of a load. Its outcomes stay when it is interrupted."""

    def __init__(self, load: Load, bounds: Bounds, send: Send, *, seed: int = 0) -> None:
        self.load, self.bounds = load, bounds
        self.outcomes: list[Outcome] = []
        self.in_flight = 0
        self.held_back = False
        """True once an arrival waited because :attr:`Bounds.in_flight` were on their way."""
        self.begun = 0.0
        self._send, self._seed = send, seed
        self._numbers = itertools.count()

    async def run(self) -> None:
        """Send the requests and wait for their answers."""
        self.begun = now()
        if isinstance(self.load, Closed):
            async with asyncio.TaskGroup() as users:
                for _ in range(min(self.load.users, self.bounds.requests)):
                    users.create_task(self._user())
        else:
            await self._arriving(self.load.rate)

    def elapsed(self) -> float:
        """Return the seconds since the point began."""
        return now() - self.begun

    async def _user(self) -> None:
        pause = FIRST_PAUSE_S
        while (left := self.bounds.duration_s - self.elapsed()) > 0:
            if (number := next(self._numbers)) >= self.bounds.requests:
                return
            outcome = await self._sent(number, self.elapsed())
            if outcome.error is None:
                pause = FIRST_PAUSE_S
                continue
            # As a client that behaves: one that tries again at once would measure its own refusals.
            wait = outcome.retry_after_s if outcome.retry_after_s is not None else pause
            pause = min(2 * pause, LONGEST_PAUSE_S)
            await asyncio.sleep(max(0.0, min(wait, left)))

    async def _arriving(self, rate: float) -> None:
        room = asyncio.Semaphore(self.bounds.in_flight)

        async def arrived(number: int, at: float) -> None:
            self.held_back |= room.locked()
            async with room:
                await self._sent(number, at)

        async with asyncio.TaskGroup() as tasks:
            for number, at in enumerate(arrivals(rate, self._seed)):
                if number >= self.bounds.requests or at > self.bounds.duration_s:
                    return
                await asyncio.sleep(max(0.0, at - self.elapsed()))
                tasks.create_task(arrived(number, at))

    async def _sent(self, number: int, intended: float) -> Outcome:
        self.in_flight += 1
        try:
            outcome = await self._send(number, intended, self.begun)
        finally:
            self.in_flight -= 1
        self.outcomes.append(outcome)
        return outcome
