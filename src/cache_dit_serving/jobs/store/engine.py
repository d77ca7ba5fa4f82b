"""Connections to the database of jobs: how long they wait, and that a SQLite file is still the one that was opened."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import SQLAlchemyError

from cache_dit_serving.jobs.store.faults import check_encoding
from cache_dit_serving.private import FILE_MODE, make_folder

WAIT_S = 2.0
"""Seconds that a statement waits for a lock of another connection."""
BRIEF_WAIT_S = 0.5
"""Seconds that the pipeline's thread waits for a lock."""
MIGRATION_WAIT_S = 60.0
"""Seconds for another server to make the tables."""
STATEMENT_S = 10.0
"""Greatest seconds of one PostgreSQL statement that is no migration."""
PRAGMAS = ("journal_mode=WAL", "foreign_keys=ON")
"""Settings of SQLite: readers go on while one writes."""
PATIENCE = {"connect_timeout": "5", "tcp_user_timeout": "10000"}
"""Settings of PostgreSQL, unless the URL has others: a host that is gone is given up after so many s and ms, rather
than after minutes."""
LOCK_NOT_AVAILABLE = "55P03"
"""PostgreSQL's code of a lock that was not had in time."""
SQLITE_FILES = ("", "-wal", "-shm")
"""Ends of the names of a database's files."""


class DatabaseGone(SQLAlchemyError):
    """The SQLite file was deleted, or another one put in its place: what is written would be lost."""

    def __init__(self) -> None:
        super().__init__("its file was deleted or exchanged under the server; put it back, or start the server again")


def make_engine(url: URL, pool_size: int = 5) -> Engine:
    """An engine whose transactions wait for locks as their execution options say; a SQLite file is there before.

    `writes` takes SQLite's write lock at the beginning; `wait_s` is the time limit of a lock, seconds. `durable` (by
    default true) has a commit, by which a job is promised, on the disk before it returns.
    """
    if url.get_backend_name() == "postgresql":
        url = url.set(query={**PATIENCE, **url.query})
    engine = create_engine(url, pool_pre_ping=True, pool_size=pool_size, pool_timeout=WAIT_S)
    if engine.dialect.name == "sqlite":
        _prepare_sqlite(engine, sqlite_file(url))
    elif engine.dialect.name == "postgresql":
        event.listen(engine, "begin", _begin_postgresql)
        if engine.driver == "psycopg":  # before SQLAlchemy's own first queries, which fail where texts come as bytes
            event.listen(engine, "connect", _check_postgresql, insert=True)
    return engine


def sqlite_file(url: URL) -> Path | None:
    """Return the file of a SQLite database; None for another kind, or one in memory."""
    if url.get_backend_name() != "sqlite" or not url.database or url.database == ":memory:":
        return None
    return Path(url.database)


def identity(file: Path) -> tuple[int, int] | None:
    """Return an identity that another file of the same name does not have; None without a file."""
    try:
        status = file.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def is_locked_row(error: BaseException) -> bool:
    """Return whether PostgreSQL answers while another session holds a row for too long."""
    return getattr(getattr(error, "orig", None), "sqlstate", None) == LOCK_NOT_AVAILABLE


def keep_private(file: Path) -> None:
    """Let only the server's user read a database, made by this where it is not there.

    SQLite gives the files beside it the same mode.

    Raises:
        OSError: it cannot be made.
    """
    make_folder(file.parent)
    os.close(os.open(file, os.O_RDWR | os.O_CREAT, FILE_MODE))
    for end in SQLITE_FILES:
        beside = file.with_name(file.name + end)
        if beside.exists() and beside.stat().st_uid == os.geteuid():
            beside.chmod(FILE_MODE)


def _prepare_sqlite(engine: Engine, file: Path | None) -> None:
    opened = file and identity(file)

    def check() -> None:
        if file is not None and identity(file) != opened:
            raise DatabaseGone

    @event.listens_for(engine, "do_connect")
    def connect(*_: Any) -> None:
        check()  # SQLite would make an empty file

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, record: object) -> None:
        connection.isolation_level = None  # transactions begin below
        connection.execute(f"PRAGMA busy_timeout={WAIT_S * 1000:.0f}")
        for pragma in PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        check()
        options = connection.get_execution_options()
        # One that would write after it has read waits for its turn now: later it could only fail.
        connection.exec_driver_sql(f"PRAGMA busy_timeout={options.get('wait_s', WAIT_S) * 1000:.0f}")
        connection.exec_driver_sql(f"PRAGMA synchronous={'FULL' if options.get('durable', True) else 'NORMAL'}")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if options.get("writes", False) else "BEGIN")


def _check_postgresql(connection: Any, _: object) -> None:
    check_encoding(connection.info.parameter_status("server_encoding"))


def _begin_postgresql(connection: Connection) -> None:
    options = connection.get_execution_options()
    wait_s = options.get("wait_s", WAIT_S)
    statement_s = max(wait_s, STATEMENT_S)
    settings = [f"lock_timeout = {wait_s * 1000:.0f}", f"statement_timeout = {statement_s * 1000:.0f}"]
    if not options.get("durable", True):
        settings.append("synchronous_commit = off")
    connection.exec_driver_sql("; ".join(f"SET LOCAL {setting}" for setting in settings))
