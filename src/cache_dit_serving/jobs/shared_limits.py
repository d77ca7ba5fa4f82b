"""Limits of callers over all servers that share a database of jobs, as one of the servers counts them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeVar

from cache_dit_serving.jobs import metrics
from cache_dit_serving.jobs.generation import Generation
from cache_dit_serving.jobs.store.database import JobDatabase
from cache_dit_serving.jobs.store.exchanged import summary

if TYPE_CHECKING:
    from cache_dit_serving.jobs.store.store import JobStore

logger = logging.getLogger(__name__)

T = TypeVar("T")
Limit = Literal["requests_per_minute", "max_live"]

ANSWER_S = 1.0
"""Seconds that a request waits for the database to count it."""
AGAIN_S = 2.0
"""Seconds after which a database that did not answer is asked again."""


@dataclass(eq=False)
class _Place:
    """A generation that the database counts as live."""

    name: str
    over: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the generation has ended, or was never admitted."""
    refused: bool = False
    """True if the database does not count it."""
    told: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the database counts it no more, or did not take that at once."""


class SharedLimits:
    """Requests a minute and live generations of each caller at all servers; for one event loop.

    A database that does not answer counts nothing: callers are served within the limits of this server alone, and the
    log and a metric tell of it.
    """

    def __init__(self, database: JobDatabase) -> None:
        self._database = database
        # One thread: what comes later to the database was asked later, so that no place is taken after it is freed.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="limits")
        self._refused: dict[str, tuple[float, float]] = {}
        """Rate of each caller that was refused, and the monotonic time until which it is."""
        self._places: dict[Generation, _Place] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._asks_from = 0.0
        """Monotonic time from which the database is asked."""
        self._apart = False
        """True while this server counts alone."""
        self._closed = False

    async def take(self, caller: str, per_minute: float) -> float | None:
        """Count a request.

        Returns:
            Seconds until the caller may send one, 0 where it may now; None where the database does not answer.
        """
        rate, until = self._refused.get(caller, (per_minute, 0.0))
        # No other server's requests bring that time nearer: a caller that goes on costs the database nothing.
        if rate == per_minute and (left_s := until - time.monotonic()) > 0:
            return left_s
        wait_s = await self._ask(lambda store: store.limits.take(caller, per_minute), "requests_per_minute")
        self._refused.pop(caller, None)
        if wait_s:
            self._refused[caller] = per_minute, time.monotonic() + wait_s
        return wait_s

    async def begin(self, generation: Generation, most: int | None, place: str | None = None) -> int | None:
        """Count a generation as live until it ends, unless its caller has `most` already.

        Args:
            place: name by which all servers know it; None: it is never another server's.

        Returns:
            Number of its caller's live generations where it is not to be admitted; else None.
        """
        held = _Place(place or secrets.token_hex(12))
        server, silent = self._database.server, self._database.heart.silent()
        # It is kept in any case: a database that does not answer in time may have counted it.
        self._keep(generation, held)
        try:
            counted, others = await self._ask(
                lambda store: store.limits.begin(held.name, generation.caller, server, most, silent), "max_live"
            ) or (True, 0)
        except BaseException:
            held.over.set()
            raise
        if counted:
            return None
        held.refused = True
        held.over.set()
        return others

    async def end(self, generation: Generation) -> None:
        """Count a generation no more; wait until the database does not either, unless it is away."""
        if (place := self._places.get(generation)) is None:
            return
        place.over.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ANSWER_S):
                await place.told.wait()

    async def close(self) -> None:
        """Ask the database no more. The places that are left are freed with the server's lease."""
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.to_thread(self._thread.shutdown, cancel_futures=True)

    def _keep(self, generation: Generation, place: _Place) -> None:
        loop = asyncio.get_running_loop()

        def ended(_: object) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the server ends while a generation runs
                loop.call_soon_threadsafe(place.over.set)

        self._places[generation] = place
        generation.result.add_done_callback(ended)
        freeing = loop.create_task(self._free(generation, place))
        self._tasks.add(freeing)
        freeing.add_done_callback(self._tasks.discard)

    async def _free(self, generation: Generation, place: _Place) -> None:
        """Free a place once its generation has ended, however long the database takes to take it."""
        await place.over.wait()
        server = self._database.server
        while not place.refused and await self._ask(lambda store: store.limits.end(place.name, server)) is None:
            place.told.set()
            await asyncio.sleep(AGAIN_S)
        place.told.set()
        del self._places[generation]

    async def _ask(self, what: Callable[[JobStore], T], limit: Limit | None = None) -> T | None:
        """Return the result of a count; None where the database does not answer.

        Args:
            limit: limit that the request is not held to then; None: no request waits for it.
        """
        store = self._database.access.store
        if store is None or self._closed:
            self._note_silence("", limit)  # the log has the reason
            return None
        if not self._database.heart.beating or time.monotonic() < self._asks_from:
            self._note_silence("it does not answer", limit)
            return None
        from sqlalchemy.exc import SQLAlchemyError  # as the open database has imported it

        from cache_dit_serving.jobs.store.engine import is_locked_row

        try:
            async with asyncio.timeout(ANSWER_S):  # wait_for of Python 3.11 may go on although it was cancelled
                answer = await asyncio.get_running_loop().run_in_executor(self._thread, what, store)
        except (SQLAlchemyError, TimeoutError) as error:
            if not is_locked_row(error):  # which is one caller's alone
                self._asks_from = time.monotonic() + AGAIN_S
            self._note_silence(summary(error) if str(error) else f"not within {ANSWER_S:g} s", limit)
            return None
        if self._apart:
            self._apart = False
            logger.info("the limits of callers hold over all servers again")
        return answer

    def _note_silence(self, reason: str, limit: Limit | None) -> None:
        if limit is None:
            return
        metrics.UNSHARED_LIMITS.labels(limit).inc()
        if reason and not self._apart:
            self._apart = True
            logger.warning("the limits of callers hold for this server alone, by the database of jobs: %s", reason)
