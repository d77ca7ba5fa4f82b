"""Jobs in a database, where they outlive the server: SQLite's file, or PostgreSQL for servers on several machines.

Each live job has an owner, the server that has it in its queue or runs it. A server says each second that it lives; the
jobs of one that is silent for a lease are for any other.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from alembic.util import CommandError
from sqlalchemy import (
    ScalarResult,
    Select,
    delete,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Session

from cache_dit_serving.jobs.record import PROGRESS, JobRecord
from cache_dit_serving.jobs.store.aged import Aged
from cache_dit_serving.jobs.store.engine import (
    BRIEF_WAIT_S,
    DatabaseGone,
    identity,
    keep_private,
    make_engine,
    sqlite_file,
)
from cache_dit_serving.jobs.store.evidence import EvidenceStore
from cache_dit_serving.jobs.store.exchanged import KeyTaken, Page, Uploads, Wanted
from cache_dit_serving.jobs.store.faults import fault_of, parsed
from cache_dit_serving.jobs.store.leases import Silent
from cache_dit_serving.jobs.store.limits import CallerLimits, free_places
from cache_dit_serving.jobs.store.migration import migrate
from cache_dit_serving.jobs.store.outbox import Outbox
from cache_dit_serving.jobs.store.ownership import beats, dead_servers, free_jobs, live_jobs_of, take
from cache_dit_serving.jobs.store.rows import columns_of, record_of
from cache_dit_serving.jobs.store.tables import LIVE, JobRow, ServerRow, UploadRow
from cache_dit_serving.jobs.webhooks import Webhook
from cache_dit_serving.schemas.jobs import JobState

FIRST = (JobRow.priority.desc(), JobRow.number)
ID = re.compile(r"\w{1,100}", re.ASCII)
"""Form of a job's id. PostgreSQL refuses a NUL in a text, and SQLite half of a character."""


class JobStore:
    """The jobs of one database, for any thread."""

    def __init__(self, url: str) -> None:
        """
        Args:
            url: as SQLAlchemy takes it; of a SQLite file the folder need not be there.

        Raises:
            UnusableDatabase: the database cannot be used as it is configured.
            LoadError: it cannot be opened now, or its tables cannot be made.
        """
        try:
            parts = parsed(url)
            self._file = sqlite_file(parts)
            if self._file is not None:
                keep_private(self._file)
                self._opened = identity(self._file)
            self._engine = make_engine(parts)
            self._writing = self._engine.execution_options(writes=True)
            # The beat waits for no connection that something else holds.
            self._beating = make_engine(parts, pool_size=1).execution_options(writes=True, wait_s=BRIEF_WAIT_S)
            self.outbox = Outbox(self._writing)
            self.aged = Aged(self._engine, self._writing)
            self.limits = CallerLimits(self._engine)
            self.evidence = EvidenceStore(self._engine, self._writing)
            try:
                migrate(self._engine)
            except BaseException:
                self.close()
                raise
        except (SQLAlchemyError, CommandError, OSError, ImportError) as error:
            raise fault_of(error) from error

    def exchanged(self) -> bool:
        """Return whether another SQLite file lies in the place of the one that was opened."""
        return self._file is not None and identity(self._file) not in (None, self._opened)

    def close(self) -> None:
        self._engine.dispose()
        self._beating.dispose()

    def add(self, record: JobRecord, uploads: Uploads, owner: str, until: float) -> None:
        """Write a job that was admitted, and its uploads.

        Raises:
            KeyTaken: there is a job of its key.
            SQLAlchemyError: it is not written.
        """
        files = [upload.encode() if isinstance(upload, str) else upload for upload in uploads]
        try:
            with self._writing.begin() as connection:
                values = columns_of(record) | {"owner": owner, "owned_until": until, "unwanted": False}
                connection.execute(insert(JobRow).values(values))
                for number, (upload, content) in enumerate(zip(uploads, files, strict=True)):
                    row = {"job": record.id, "number": number, "is_text": isinstance(upload, str), "content": content}
                    connection.execute(insert(UploadRow).values(row))
        except IntegrityError as error:
            raise KeyTaken from error
        if self._file is not None and identity(self._file) != self._opened:
            raise DatabaseGone

    def get(self, job: str) -> JobRecord | None:
        if not ID.fullmatch(job):
            return None
        return self._one(select(JobRow).where(JobRow.id == job))

    def counts(self) -> dict[str, int]:
        """Return the number of jobs by state; a state without jobs is left out."""
        with self._engine.connect() as connection:
            query = select(JobRow.state, func.count()).group_by(JobRow.state)
            return {state: count for state, count in connection.execute(query)}

    def of_key(self, key: str) -> JobRecord | None:
        return self._one(select(JobRow).where(JobRow.key == key))

    def uploads(self, job: str) -> list[str | bytes]:
        """Return the files that came with a job that has not ended."""
        query = select(UploadRow).where(UploadRow.job == job).order_by(UploadRow.number)
        with self._rows(query) as rows:
            return [row.content.decode() if row.is_text else row.content for row in rows]

    def page(self, wanted: Page, caller: str | None = None) -> list[JobRecord] | None:
        """Return the jobs of a page; None if there is no job to come after.

        Args:
            caller: name of the sender; None for all senders.
        """
        order = JobRow.number.asc() if wanted.ascending else JobRow.number.desc()
        query = select(JobRow).order_by(order).limit(wanted.limit)
        if caller is not None:
            query = query.where(JobRow.caller == caller)
        if wanted.state is not None:
            query = query.where(JobRow.state == wanted.state)
        if wanted.prefix:
            query = query.where(JobRow.id.startswith(wanted.prefix, autoescape=True))
        if wanted.after is not None:
            if not ID.fullmatch(wanted.after):
                return None
            with self._engine.connect() as connection:
                of_it = select(JobRow.number).where(JobRow.id == wanted.after)
                number = connection.scalar(of_it if caller is None else of_it.where(JobRow.caller == caller))
            if number is None:
                return None
            query = query.where(JobRow.number > number if wanted.ascending else JobRow.number < number)
        return self._many(query)

    def put(
        self,
        record: JobRecord,
        owner: str,
        *,
        keep: bool = True,
        webhooks: Iterable[Webhook] = (),
        brief: bool = False,
    ) -> bool:
        """Write the state of an owner's job, and drop its uploads once it has ended.

        Args:
            keep: whether it stays the owner's.
            webhooks: messages to send about it, unless the state is there already.
            brief: fail rather than wait for the database for long.

        Returns:
            False if it is another's by now, or has ended; then nothing is written.
        """
        mine = (JobRow.id == record.id, *live_jobs_of(owner))
        writing = self._writing.execution_options(wait_s=BRIEF_WAIT_S) if brief else self._writing
        with writing.begin() as connection:
            values = columns_of(record) | ({} if keep and not record.state.final else {"owner": None})
            del values["priority"]  # its owner may not know the latest yet
            writes = update(JobRow).where(*mine).values(values)
            if connection.execute(writes.where(JobRow.history != values["history"])).rowcount:
                self.outbox.add(connection, webhooks, time.time())
            elif connection.execute(writes).rowcount == 0:  # else the state is written again: the caller was told
                return False
            if record.state.final:
                connection.execute(delete(UploadRow).where(UploadRow.job == record.id))
        return True

    def beat(self, server: str) -> dict[str, int]:
        """Write a beat of a server.

        Returns:
            The beats of all servers, by their names.
        """
        mine = ServerRow.id == server
        with self._beating.begin() as connection:
            if connection.execute(update(ServerRow).where(mine).values(beats=ServerRow.beats + 1)).rowcount == 0:
                connection.execute(insert(ServerRow).values(id=server, beats=1))
            return beats(connection)

    def leave(self, server: str) -> None:
        """Forget a server that ends, and free its jobs and places."""
        with self._beating.begin() as connection:
            connection.execute(delete(ServerRow).where(ServerRow.id == server))
            free_places(connection, [server])
            free = update(JobRow).where(*live_jobs_of(server)).values(owner=None)
            connection.execute(free)

    def tell(self, owner: str, until: float, jobs: Iterable[JobRecord]) -> dict[str, Wanted]:
        """Write the progress of an owner's jobs.

        Args:
            until: time at which servers of an older version take the owner for dead, seconds since the epoch.

        Returns:
            The jobs that it owns now, each with the wishes of callers.
        """
        mine = select(JobRow.id, JobRow.unwanted, JobRow.priority).where(*live_jobs_of(owner))
        with self._writing.begin() as connection:
            # A row that somebody else holds is told of next time: the others do not wait for it.
            held = {job for job, *_ in connection.execute(mine.with_for_update(skip_locked=True))}
            connection.execute(update(JobRow).where(JobRow.id.in_(held)).values(owned_until=until))
            for job in jobs:
                if job.id in held:
                    of_it = update(JobRow).where(JobRow.id == job.id)
                    connection.execute(of_it.values({name: getattr(job, name) for name in PROGRESS}))
            return {job: Wanted(unwanted, priority) for job, unwanted, priority in connection.execute(mine)}

    def set_priority(self, job: str, priority: int) -> bool:
        """Have a job wait with another priority, at whatever server it waits; return False if it does not wait."""
        if not ID.fullmatch(job):
            return False
        waits = (JobRow.id == job, JobRow.state == JobState.QUEUED)
        with self._writing.begin() as connection:
            return connection.execute(update(JobRow).where(*waits).values(priority=priority)).rowcount > 0

    def want_cancelled(self, job: str) -> None:
        """Have the owner of a job cancel it."""
        if not ID.fullmatch(job):
            return
        with self._writing.begin() as connection:
            connection.execute(update(JobRow).where(JobRow.id == job, JobRow.state.in_(LIVE)).values(unwanted=True))

    def release(self, jobs: Sequence[str], owner: str) -> None:
        """Give up jobs of an owner, for the next server that takes them over."""
        with self._writing.begin() as connection:
            connection.execute(update(JobRow).where(JobRow.id.in_(jobs), *live_jobs_of(owner)).values(owner=None))

    def take_waiting(self, owner: str, until: float) -> JobRecord | None:
        """Take the next job that waits at another server, for one that is idle."""
        # One that came within the last second has no position yet: its owner may be about to begin it.
        wanted = (JobRow.position.is_not(None), JobRow.unwanted.is_(False))
        waits = (JobRow.state == JobState.QUEUED, JobRow.owner != owner, *wanted)
        with self._writing.begin() as connection:
            next_one = select(JobRow.id).where(*waits).order_by(*FIRST).limit(1).with_for_update(skip_locked=True)
            job = connection.scalar(next_one)
            mine = update(JobRow).where(JobRow.id == job, *waits).values(owner=owner, owned_until=until, position=None)
            if job is None or connection.execute(mine).rowcount == 0:
                return None
        return self.get(job)

    def adopt(self, owner: str, until: float, limit: int, silent: Silent) -> list[JobRecord]:
        """Take over jobs without a living owner, the first ones first."""
        taken = []
        with self._writing.begin() as connection:
            free = free_jobs(connection, owner, silent)
            query = select(JobRow.id).where(*free).order_by(*FIRST).limit(limit).with_for_update(skip_locked=True)
            for job in connection.scalars(query).all():
                if take(connection, job, owner, until, free):
                    taken.append(job)
            if not taken and silent.beats:
                has_jobs = select(JobRow.id).where(JobRow.owner == ServerRow.id, JobRow.state.in_(LIVE)).exists()
                over = delete(ServerRow).where(dead_servers(silent), ~has_jobs).returning(ServerRow.id)
                free_places(connection, connection.scalars(over).all())
        return self._many(select(JobRow).where(JobRow.id.in_(taken)).order_by(*FIRST)) if taken else []

    def claim(self, job: str, owner: str, until: float, silent: Silent) -> JobRecord | None:
        """Take over one job without a living owner; return None if its owner lives, or it has ended."""
        if not ID.fullmatch(job):
            return None
        with self._writing.begin() as connection:
            if not take(connection, job, owner, until, free_jobs(connection, owner, silent)):
                return None
        return self.get(job)

    def delete(self, job: str) -> None:
        """Forget a job."""
        with self._writing.begin() as connection:
            connection.execute(delete(JobRow).where(JobRow.id == job))

    def _one(self, query: Select[JobRow]) -> JobRecord | None:
        return next(iter(self._many(query)), None)

    def _many(self, query: Select[JobRow]) -> list[JobRecord]:
        with self._rows(query) as rows:
            return [record_of(row) for row in rows]

    @contextmanager
    def _rows(self, query: Select[Any]) -> Iterator[ScalarResult[Any]]:
        with Session(self._engine) as session:
            yield session.scalars(query)
