"""The database of jobs for an event loop: it answers within seconds, or counts as unavailable."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol, TypeVar

from cache_dit_serving.errors import LoadError, StoreUnavailable
from cache_dit_serving.jobs.store.exchanged import summary

if TYPE_CHECKING:
    from cache_dit_serving.jobs.store.store import JobStore

logger = logging.getLogger(__name__)

T = TypeVar("T")

ANSWER_S = 4.0
"""Seconds within which the database must answer, the wait for those before included."""
AGAIN_S = 2.0
"""Seconds for a client to wait before it asks again."""
READERS = 2
OPENING = "the server is loading: the database of jobs is being opened"
NOT_OPEN = "the database of jobs is not open; the server's log says why"
SILENT = "the database of jobs does not answer"


class Ask(Protocol):
    """A call of the database away from the event loop, which gives the result.

    Raises:
        StoreUnavailable: it does not answer.
    """

    def __call__(self, what: Callable[[JobStore], T], /) -> Awaitable[T]: ...


class StoreAccess:
    """One database: its writes one after another, its reads beside them."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._store: JobStore | None = None
        self._unopened = ""
        """Reason for which it is not open."""
        self._silent = False
        """True if it did not answer the last time."""
        self._writing = ThreadPoolExecutor(1, thread_name_prefix="jobs-store")
        self._reading = ThreadPoolExecutor(READERS, thread_name_prefix="jobs-read")

    @property
    def store(self) -> JobStore | None:
        """The database, for other threads; None: it is not open."""
        return self._store

    @property
    def fault(self) -> str | None:
        """Reason for which jobs are refused now, for callers; None: there is none, or it is being opened."""
        if self._store is None:
            return NOT_OPEN if self._unopened else None
        return SILENT if self._silent else None

    @property
    def silent(self) -> bool:
        """True if the latest query had no answer."""
        return self._silent

    async def open(self) -> bool:
        """Open the database if it is not, or if its file was exchanged; return whether it is open.

        Its file is not made anew while the server runs: jobs that were promised would be lost without a word.
        """
        before = self._store
        if before is not None and not before.exchanged():
            return True
        loop = asyncio.get_running_loop()
        try:
            self._store = await loop.run_in_executor(self._writing, _opened, self._url)
        except LoadError as error:
            if self._is_news(error):  # for the log alone: it may name hosts and folders
                logger.warning("the database of jobs is not open, and is tried again each second: %s", error)
            return False
        except Exception as error:
            if self._is_news(error):
                logger.exception("the database of jobs is not open, and is tried again each second")
            return False
        if before is not None:
            logger.warning("the file of the database of jobs was exchanged; the new one is open")
            before.close()
        elif self._unopened:
            logger.info("the database of jobs is open")
        self._unopened = ""
        return True

    async def read(self, what: Callable[[JobStore], T]) -> T:
        """Return the result of a query.

        Raises:
            StoreUnavailable: it does not answer.
        """
        return await self._ask(self._reading, what)

    async def write(self, what: Callable[[JobStore], T]) -> T:
        """Return the result of a write.

        Raises:
            StoreUnavailable: it does not answer. It may have done it all the same.
        """
        return await self._ask(self._writing, what)

    def close(self) -> None:
        for threads in (self._writing, self._reading):
            threads.shutdown(cancel_futures=True)
        if self._store is not None:
            self._store.close()

    async def _ask(self, threads: ThreadPoolExecutor, what: Callable[[JobStore], T]) -> T:
        if (store := self._store) is None:
            raise self._not_open()
        from sqlalchemy.exc import SQLAlchemyError  # as the open database has imported it

        from cache_dit_serving.jobs.store.engine import is_locked_row

        asked = asyncio.get_running_loop().run_in_executor(threads, what, store)
        try:
            answer = await asyncio.wait_for(asked, ANSWER_S)
        except (SQLAlchemyError, TimeoutError) as error:
            if is_locked_row(error):
                message = "another session holds this job in the database"
                raise StoreUnavailable(message, retry_after_s=AGAIN_S) from error
            if not self._silent:
                reason = summary(error) if isinstance(error, SQLAlchemyError) else f"not within {ANSWER_S:g} s"
                logger.error("the database of jobs does not answer: %s", reason)
            self._silent = True
            raise StoreUnavailable(SILENT, retry_after_s=AGAIN_S) from error
        if self._silent and threads is self._writing:
            logger.info("the database of jobs answers again")
            self._silent = False
        return answer

    def _is_news(self, error: Exception) -> bool:
        """Keep the reason for which the database is not open; return whether it is another than before."""
        before, self._unopened = self._unopened, repr(error)
        return self._unopened != before

    def _not_open(self) -> StoreUnavailable:
        if self._unopened:
            message, code = NOT_OPEN, None
        else:
            message, code = OPENING, "loading"
        return StoreUnavailable(message, code=code, retry_after_s=AGAIN_S)


def _opened(url: str) -> JobStore:
    # Here, on the thread that opens it: the supervisor opens none, and SQLAlchemy and alembic take it half a second.
    from cache_dit_serving.jobs.store.store import JobStore

    return JobStore(url)
