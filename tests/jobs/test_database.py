"""What befalls the database itself: it is locked, deleted, exchanged, cut off, or of another version."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
import timeit
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from cache_dit_serving.errors import LoadError
from cache_dit_serving.jobs.store.engine import BRIEF_WAIT_S, MIGRATION_WAIT_S, WAIT_S, DatabaseGone
from cache_dit_serving.jobs.store.store import JobStore
from cache_dit_serving.jobs.store.tables import Base
from tests.support.jobs import QUEUED, RUNNING, record
from tests.support.postgres import Postgres, needs_postgres

LATER = time.time() + 1e9


def test_the_tables_are_what_the_migrations_make(store: JobStore) -> None:
    with store._engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


def test_what_is_no_database_fails_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x" * 5000)
    for url in (f"sqlite:///{tmp_path}/file", "nonsense", "nodialect://host/name"):
        with pytest.raises(LoadError, match=r"^jobs\.database cannot be opened: "):
            JobStore(url)


def test_several_servers_make_the_tables_at_once(url: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        stores = list(pool.map(JobStore, [url] * 4))
    stores[0].add(record(), [], "me", LATER)
    for store in stores:
        assert store.get("one") == record()
        store.close()


@needs_postgres
def test_a_connection_that_was_cut_is_made_anew(cluster: Postgres) -> None:
    store = JobStore(cluster.new_database())
    store.add(record(), [], "me", LATER)
    cluster.stop()
    with pytest.raises(SQLAlchemyError):
        store.get("one")
    cluster.start()
    assert store.get("one") == record()
    store.close()


def test_a_locked_file_is_waited_for_briefly_and_read_meanwhile(tmp_path: Path) -> None:
    store = JobStore(f"sqlite:///{tmp_path}/jobs.sqlite3")
    store.add(record(), [], "me", LATER)
    with contextlib.closing(sqlite3.connect(tmp_path / "jobs.sqlite3", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert min(timeit.repeat(lambda: store.get("one"), number=1, repeat=5)) < BRIEF_WAIT_S / 2
        assert store.get("one") == record()
        for write, most_s in (
            (lambda: store.beat("me"), WAIT_S),
            (lambda: store.put(record("one", QUEUED, RUNNING), "me", brief=True), WAIT_S),
            (lambda: store.add(record("two"), [], "me", LATER), MIGRATION_WAIT_S / 2),
        ):
            began = time.monotonic()
            with pytest.raises(SQLAlchemyError, match="locked"):
                write()
            assert time.monotonic() - began < most_s
    store.close()


def test_a_file_that_is_deleted_or_exchanged_is_noticed(tmp_path: Path) -> None:
    url, file = f"sqlite:///{tmp_path}/jobs.sqlite3", tmp_path / "jobs.sqlite3"
    store = JobStore(url)
    store.add(record(), [], "me", LATER)
    file.rename(tmp_path / "away")
    for ask in (lambda: store.get("one"), lambda: store.add(record("two"), [], "me", LATER), lambda: store.beat("me")):
        with pytest.raises(DatabaseGone, match="deleted or exchanged"):
            ask()
    assert not file.exists()
    assert not store.exchanged()
    (tmp_path / "away").rename(file)
    assert store.get("one") == record()
    file.rename(tmp_path / "away")
    other = JobStore(url)
    assert store.exchanged()
    with pytest.raises(DatabaseGone):
        store.get("one")
    for each in (store, other):
        each.close()


def test_nobody_else_reads_the_files_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store = JobStore(f"sqlite:///{tmp_path}/a/b/jobs.sqlite3")
        store.add(record(), [], "me", LATER)
    finally:
        os.umask(before)
    assert {file.name: oct(file.stat().st_mode & 0o777) for file in (tmp_path / "a").rglob("*")} == {
        "b": "0o700",
        "jobs.sqlite3": "0o600",
        "jobs.sqlite3-wal": "0o600",
        "jobs.sqlite3-shm": "0o600",
    }
    (tmp_path / "a/b/jobs.sqlite3").chmod(0o644)  # one of an older version
    JobStore(f"sqlite:///{tmp_path}/a/b/jobs.sqlite3").close()
    assert oct((tmp_path / "a/b/jobs.sqlite3").stat().st_mode & 0o777) == "0o600"
    store.close()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("DROP TABLE live_places", "no table live_places"),
        ("ALTER TABLE jobs DROP COLUMN priority", r"no column jobs\.priority"),
        (
            "ALTER TABLE servers RENAME COLUMN beats TO hearts",
            r"no column servers\.beats.*servers\.hearts needs a value",
        ),
    ],
)
def test_tables_of_another_version_that_it_cannot_use_are_named(
    store: JobStore, url: str, change: str, reason: str
) -> None:
    with store._engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        connection.execute(text(change))
    with pytest.raises(LoadError, match=f"of another version of this server.*9999.*{reason}"):
        JobStore(url)


def test_an_older_server_starts_on_tables_to_which_a_newer_one_has_added(
    store: JobStore, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    store.add(record(), [], "newer", LATER)
    with store._engine.begin() as connection:
        for change in (
            "CREATE TABLE added_later (id TEXT NOT NULL)",
            "ALTER TABLE jobs ADD COLUMN nullable_later TEXT",
            "ALTER TABLE jobs ADD COLUMN default_later INTEGER NOT NULL DEFAULT 7",
            "UPDATE alembic_version SET version_num = '9999'",
        ):
            connection.execute(text(change))
    older = JobStore(url)
    assert "of a newer version" in caplog.text
    older.add(record("two"), [], "older", LATER)
    assert [older.get(name) for name in ("one", "two")] == [record("one"), record("two")]
    with older._engine.connect() as connection:
        rows = connection.execute(text("SELECT default_later FROM jobs")).scalars().all()
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar() == "9999"
    assert rows == [7, 7]
    older.close()


def test_a_running_server_goes_on_beside_a_newer_one_that_added_a_column(store: JobStore) -> None:
    store.add(record(), [], "me", LATER)
    with store._engine.begin() as connection:
        connection.execute(text("ALTER TABLE jobs ADD COLUMN added_later TEXT"))
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        connection.execute(text("UPDATE jobs SET added_later = 'kept'"))
    assert store.put(record("one", QUEUED, RUNNING), "me")
    store.add(record("two"), [], "me", LATER)
    assert store.tell("me", LATER, [record("two", position=1)]) == {"one": (False, 0), "two": (False, 0)}
    taken = store.take_waiting("you", LATER)
    assert taken is not None
    assert taken.id == "two"
    with store._engine.connect() as connection:
        rows = connection.execute(text("SELECT id, added_later FROM jobs ORDER BY number")).all()
    assert [tuple(row) for row in rows] == [("one", "kept"), ("two", None)]


def test_a_file_that_another_process_writes_to_is_waited_for(tmp_path: Path) -> None:
    store = JobStore(f"sqlite:///{tmp_path}/jobs.sqlite3")
    other = sqlite3.connect(tmp_path / "jobs.sqlite3", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with ThreadPoolExecutor(1) as pool:
        added = pool.submit(store.add, record(), [], "me", LATER)
        time.sleep(0.3)
        assert store.get("one") is None  # reading goes on
        other.execute("COMMIT")
        added.result(60)
    assert store.get("one") == record()
    other.close()
    store.close()
