"""Jobs in a database, where they outlive the server: SQLite's file, or PostgreSQL for servers on several machines.

Each live job has an owner, the server that has it in its queue or runs it. An owner says every so often that it lives;
of one that does not, any server may take the jobs over.
"""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import (
    URL,
    ColumnElement,
    Connection,
    Engine,
    ScalarResult,
    Select,
    create_engine,
    delete,
    event,
    func,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.orm import Session

from cache_dit_serving.errors import LoadError
from cache_dit_serving.jobs.record import JobRecord
from cache_dit_serving.jobs.store.outbox import Outbox
from cache_dit_serving.jobs.store.tables import JobRow, UploadRow
from cache_dit_serving.jobs.webhooks import Webhook
from cache_dit_serving.schemas.jobs import JobState

PRAGMAS = ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=10000")
"""Of SQLite: readers go on while one writes; a commit is on the disk when it returns, for a job is promised by then;
another process is waited for, ms."""
PATIENCE = {"connect_timeout": "5", "tcp_user_timeout": "10000"}
"""Of PostgreSQL, where the URL says nothing of it: a host that is gone is given up after so long, s and ms, rather than
after minutes."""
MIGRATING = 0x6361636865646974
"""Number of the lock that a server of several has while it makes the tables."""
LIVE = (JobState.QUEUED, JobState.RUNNING)
PROGRESS = ("step", "cached_steps", "position", "starts_in_s", "seconds_left")
FIRST = (JobRow.priority.desc(), JobRow.number)
Uploads = Sequence[str | bytes]


class KeyTaken(Exception):
    """There is a job of the same Idempotency-Key."""


@dataclass(frozen=True)
class Page:
    """Which jobs of a list."""

    limit: int
    after: str | None = None
    """Id of the job that they come after."""
    state: JobState | None = None
    prefix: str = ""
    """Of their ids."""
    ascending: bool = False
    """The first ones first, in place of the latest."""


class JobStore:
    """The jobs of one database, for any thread."""

    def __init__(self, url: str) -> None:
        """
        Args:
            url: as SQLAlchemy takes it; of a SQLite file the folder need not be there.

        Raises:
            LoadError: the database cannot be opened, or its tables cannot be made.
        """
        try:
            parsed = make_url(url)
            if parsed.get_backend_name() == "sqlite" and parsed.database:
                Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
            self._engine = _engine(parsed)
            self._writing = self._engine.execution_options(writes=True)
            self.outbox = Outbox(self._writing)
            with self._writing.begin() as connection:
                if self._engine.dialect.name == "postgresql":
                    connection.execute(select(func.pg_advisory_xact_lock(MIGRATING)))
                config = Config()
                config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
        except (SQLAlchemyError, OSError, ImportError) as error:
            raise LoadError(f"jobs.database cannot be opened: {told(error)}") from error

    def close(self) -> None:
        self._engine.dispose()

    def add(self, record: JobRecord, uploads: Uploads, owner: str, until: float) -> None:
        """
        Raises:
            KeyTaken: there is a job of its key.
        """
        files = [upload.encode() if isinstance(upload, str) else upload for upload in uploads]
        try:
            with self._writing.begin() as connection:
                values = _columns(record) | {"owner": owner, "owned_until": until, "unwanted": False}
                connection.execute(insert(JobRow).values(values))
                for number, (upload, content) in enumerate(zip(uploads, files, strict=True)):
                    row = {"job": record.id, "number": number, "is_text": isinstance(upload, str), "content": content}
                    connection.execute(insert(UploadRow).values(row))
        except IntegrityError as error:
            raise KeyTaken from error

    def get(self, job: str) -> JobRecord | None:
        return self._one(select(JobRow).where(JobRow.id == job))

    def of_key(self, key: str) -> JobRecord | None:
        return self._one(select(JobRow).where(JobRow.key == key))

    def uploads(self, job: str) -> list[str | bytes]:
        """The files that came with a job that has not ended."""
        query = select(UploadRow).where(UploadRow.job == job).order_by(UploadRow.number)
        with self._rows(query) as rows:
            return [row.content.decode() if row.is_text else row.content for row in rows]

    def page(self, wanted: Page, caller: str | None = None) -> list[JobRecord] | None:
        """None: there is no job to come after.

        Args:
            caller: whose; None: everyone's.
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
            with self._engine.connect() as connection:
                of_it = select(JobRow.number).where(JobRow.id == wanted.after)
                number = connection.scalar(of_it if caller is None else of_it.where(JobRow.caller == caller))
            if number is None:
                return None
            query = query.where(JobRow.number > number if wanted.ascending else JobRow.number < number)
        return self._many(query)

    def put(self, record: JobRecord, owner: str, *, keep: bool = True, webhooks: Iterable[Webhook] = ()) -> bool:
        """Write what has become of a job of an owner's, and drop its uploads once it has ended.

        Args:
            keep: whether it stays the owner's.
            webhooks: what is to be told of it.

        Returns:
            False: it is another's by now, or has ended, and nothing was written.
        """
        mine = (JobRow.id == record.id, *_of(owner))
        with self._writing.begin() as connection:
            values = _columns(record) | ({} if keep and not record.state.final else {"owner": None})
            if connection.execute(update(JobRow).where(*mine).values(values)).rowcount == 0:
                return False
            self.outbox.add(connection, webhooks, time.time())
            if record.state.final:
                connection.execute(delete(UploadRow).where(UploadRow.job == record.id))
        return True

    def beat(self, owner: str, until: float, jobs: Iterable[JobRecord]) -> dict[str, bool]:
        """Say that an owner lives, and how far its jobs are.

        Returns:
            The jobs that are its own by now, each with whether it is to be cancelled.
        """
        mine = _of(owner)
        with self._writing.begin() as connection:
            connection.execute(update(JobRow).where(*mine).values(owned_until=until))
            for job in jobs:
                of_it = update(JobRow).where(*mine, JobRow.id == job.id)
                connection.execute(of_it.values({name: getattr(job, name) for name in PROGRESS}))
            return {
                job: unwanted for job, unwanted in connection.execute(select(JobRow.id, JobRow.unwanted).where(*mine))
            }

    def want_cancelled(self, job: str) -> None:
        """Have the owner of a job cancel it."""
        with self._writing.begin() as connection:
            connection.execute(update(JobRow).where(JobRow.id == job, JobRow.state.in_(LIVE)).values(unwanted=True))

    def release(self, jobs: Sequence[str], owner: str) -> None:
        """Give jobs of an owner's up, for whoever takes them over."""
        with self._writing.begin() as connection:
            connection.execute(update(JobRow).where(JobRow.id.in_(jobs), *_of(owner)).values(owner=None))

    def take_waiting(self, owner: str, until: float) -> JobRecord | None:
        """Take the next job that waits at another server, for one that is idle."""
        # One that came within the last second has no position yet: its owner may be about to begin it.
        told = (JobRow.position.is_not(None), JobRow.unwanted.is_(False))
        waits = (JobRow.state == JobState.QUEUED, JobRow.owner != owner, *told)
        with self._writing.begin() as connection:
            job = connection.scalar(select(JobRow.id).where(*waits).order_by(*FIRST).limit(1))
            mine = update(JobRow).where(JobRow.id == job, *waits).values(owner=owner, owned_until=until, position=None)
            if job is None or connection.execute(mine).rowcount == 0:
                return None
        return self.get(job)

    def adopt(self, owner: str, until: float, limit: int) -> list[JobRecord]:
        """Take over jobs that nobody has any more, the first ones first."""
        taken = []
        with self._writing.begin() as connection:
            free = select(JobRow.id).where(*_free()).order_by(*FIRST).limit(limit)
            for job in connection.scalars(free).all():
                if _take(connection, job, owner, until):
                    taken.append(job)
        return self._many(select(JobRow).where(JobRow.id.in_(taken)).order_by(*FIRST)) if taken else []

    def claim(self, job: str, owner: str, until: float) -> JobRecord | None:
        """Take over one job that nobody has any more; None: somebody has it, or it has ended."""
        with self._writing.begin() as connection:
            if not _take(connection, job, owner, until):
                return None
        return self.get(job)

    def delete(self, job: str) -> None:
        """Forget a job."""
        with self._writing.begin() as connection:
            connection.execute(delete(JobRow).where(JobRow.id == job))

    def surplus(self, ended_before: float, most: int) -> list[JobRecord]:
        """Jobs that ended before a time, or that more than so many have ended after."""
        ended = select(JobRow).where(JobRow.ended.is_not(None))
        old = self._many(ended.where(JobRow.ended < ended_before))
        many = self._many(ended.order_by(JobRow.ended.desc(), JobRow.number.desc()).offset(most).limit(1000))
        return list({record.id: record for record in (*old, *many)}.values())

    def with_files(self) -> tuple[list[JobRecord], set[str]]:
        """The jobs that have ended with outputs, and the ids of those that have not ended."""
        live = select(JobRow.id).where(JobRow.state.in_(LIVE))
        with self._engine.connect() as connection:
            ids = set(connection.scalars(live))
        return self._many(select(JobRow).where(JobRow.ended.is_not(None), JobRow.files != "[]")), ids

    def _one(self, query: Select[JobRow]) -> JobRecord | None:
        return next(iter(self._many(query)), None)

    def _many(self, query: Select[JobRow]) -> list[JobRecord]:
        with self._rows(query) as rows:
            return [_record(row) for row in rows]

    @contextmanager
    def _rows(self, query: Select[Any]) -> Iterator[ScalarResult[Any]]:
        with Session(self._engine) as session:
            yield session.scalars(query)


Ask = Callable[[Callable[[JobStore], Any]], Awaitable[Any]]
"""Has the database do something away from the event loop, and gives what that returns."""


def _engine(url: URL) -> Engine:
    if url.get_backend_name() == "postgresql":
        url = url.set(query={**PATIENCE, **url.query})
    engine = create_engine(url, pool_pre_ping=True)
    if engine.dialect.name == "sqlite":

        @event.listens_for(engine, "connect")
        def prepare(connection: Any, record: object) -> None:
            connection.isolation_level = None  # transactions begin below
            for pragma in PRAGMAS:
                connection.execute(f"PRAGMA {pragma}")

        @event.listens_for(engine, "begin")
        def begin(connection: Connection) -> None:
            # One that would write after it has read waits for its turn now: later it could only fail.
            writes = connection.get_execution_options().get("writes", False)
            connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _of(owner: str) -> tuple[ColumnElement[bool], ...]:
    """Of live jobs of an owner's."""
    return JobRow.owner == owner, JobRow.state.in_(LIVE)


def _take(connection: Connection, job: str, owner: str, until: float) -> bool:
    """Take over a job; whether nobody had it any more."""
    mine = update(JobRow).where(JobRow.id == job, *_free()).values(owner=owner, owned_until=until)
    return connection.execute(mine).rowcount > 0


def _free() -> tuple[ColumnElement[bool], ...]:
    """Of jobs that nobody has any more."""
    return JobRow.state.in_(LIVE), or_(JobRow.owner.is_(None), JobRow.owned_until < time.time())


def _columns(record: JobRecord) -> dict[str, Any]:
    return {
        "id": record.id,
        "key": record.key,
        "digest": record.digest,
        "request": record.request,
        "state": record.state,
        "history": json.dumps(record.history),
        "ended": record.history[-1][1] if record.state.final else None,
        "step": record.step,
        "steps": record.steps,
        "cached_steps": record.cached_steps,
        "result": record.result,
        "error": record.error,
        "files": json.dumps(record.files),
        "caller": record.caller,
        "priority": record.priority,
        "attempts": record.attempts,
        "position": record.position,
        "starts_in_s": record.starts_in_s,
        "seconds_left": record.seconds_left,
    }


def _record(row: JobRow) -> JobRecord:
    return JobRecord(
        id=row.id,
        history=tuple((JobState(state), at) for state, at in json.loads(row.history)),
        steps=row.steps,
        request=row.request,
        digest=row.digest,
        step=row.step,
        cached_steps=row.cached_steps,
        result=row.result,
        error=row.error,
        files=tuple(json.loads(row.files)),
        key=row.key,
        caller=row.caller,
        priority=row.priority,
        attempts=row.attempts,
        position=row.position,
        starts_in_s=row.starts_in_s,
        seconds_left=row.seconds_left,
    )


def told(error: BaseException) -> str:
    """What a database says of an error, in one line and without the statement."""
    return str(getattr(error, "orig", None) or error).splitlines()[0]
