"""Jobs in a database."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from pydantic import ValidationError
from sqlalchemy import insert, text
from sqlalchemy.exc import SQLAlchemyError

from cache_dit_serving.config.settings import JobsSettings
from cache_dit_serving.errors import InternalError, LoadError
from cache_dit_serving.jobs.job import failed, succeeded
from cache_dit_serving.jobs.store.aged import BATCH, Ended
from cache_dit_serving.jobs.store.engine import WAIT_S, DatabaseGone
from cache_dit_serving.jobs.store.leases import Leases, Silent
from cache_dit_serving.jobs.store.rows import columns_of
from cache_dit_serving.jobs.store.store import JobStore, KeyTaken, Page
from cache_dit_serving.jobs.store.tables import Base, JobRow
from cache_dit_serving.schemas.jobs import JobState
from tests.support.jobs import QUEUED, RUNNING, record
from tests.support.postgres import Postgres, needs_postgres, postgres

LATER, BEFORE = time.time() + 1e9, 1.0
WATCHED = Silent(settled=True)
"""As a server has it that would have heard all others by now, and heard none."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Postgres]:
    with postgres() as running:
        yield running


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=needs_postgres)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/below/jobs.sqlite3"
    cluster: Postgres = request.getfixturevalue("cluster")
    return cluster.new_database()


@pytest.fixture
def store(url: str) -> Iterator[JobStore]:
    opened = JobStore(url)
    yield opened
    opened.close()


def test_a_job_comes_back_as_it_was_put(store: JobStore) -> None:
    job = record(digest="d", key="k", attempts=2)
    store.add(job, ["text", b"\0bytes"], "me", LATER)
    assert store.get("one") == store.of_key("k") == job
    assert store.uploads("one") == ["text", b"\0bytes"]
    assert store.get("two") is None
    ended = succeeded(record("one", QUEUED, RUNNING, digest="d", key="k"), '{"a":1}', ("a/b.png",))
    assert store.put(ended, "me")
    assert store.get("one") == ended
    assert store.uploads("one") == []


def test_the_tables_are_what_the_migrations_make(store: JobStore) -> None:
    with store._engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []


def test_opening_it_again_keeps_all(url: str) -> None:
    first = JobStore(url)
    first.add(record(), [], "me", LATER)
    first.close()
    second = JobStore(url)
    assert second.get("one") == record()
    second.close()


def test_a_job_has_one_owner_and_one_end(store: JobStore) -> None:
    store.add(record(), [], "me", LATER)
    assert not store.put(record("one", QUEUED, RUNNING), "you")
    assert store.put(record("one", QUEUED, RUNNING), "me")
    end = succeeded(record("one", QUEUED, RUNNING), "{}", ())
    assert store.put(end, "me")
    assert not store.put(failed(record("one", QUEUED, RUNNING), InternalError()), "me")
    assert not store.put(record("one", QUEUED, RUNNING), "me")
    assert store.get("one") == end


def test_a_key_is_of_one_job_until_it_is_forgotten(store: JobStore) -> None:
    store.add(record(key="k"), [], "me", LATER)
    with pytest.raises(KeyTaken):
        store.add(record("two", key="k"), [], "me", LATER)
    store.aged.delete(["one"])
    store.add(record("two", key="k"), [], "me", LATER)
    for name in ("three", "four"):  # no key is no key
        store.add(record(name), [], "me", LATER)


def test_jobs_that_nobody_has_are_taken_over_once(store: JobStore) -> None:
    for name, until in (("a", BEFORE), ("b", LATER), ("c", BEFORE)):
        store.add(record(name), [], "dead", until)
    store.add(record("d"), [], "me", LATER)
    store.put(record("d"), "me", keep=False)
    with ThreadPoolExecutor(4) as pool:
        taken = list(pool.map(lambda owner: store.adopt(owner, LATER, 9, WATCHED), "wxyz"))
    names = [job.id for some in taken for job in some]
    assert sorted(names) == ["a", "c", "d"]
    assert store.claim("b", "me", LATER, WATCHED) is None
    assert store.adopt("me", LATER, 9, WATCHED) == []


def test_who_says_that_it_lives_keeps_its_jobs(store: JobStore) -> None:
    store.add(record(), [], "me", BEFORE)
    told = record(step=4, cached_steps=2, position=3, starts_in_s=1.5)
    assert store.tell("me", LATER, [told]) == {"one": False}
    assert store.adopt("you", LATER, 9, WATCHED) == []
    assert store.get("one") == told
    store.want_cancelled("one")
    assert store.tell("me", LATER, []) == {"one": True}
    assert store.tell("you", LATER, [record(step=9)]) == {}
    assert store.get("one") == told
    store.release(["one"], "you")
    assert store.adopt("you", LATER, 9, WATCHED) == []
    store.release(["one"], "me")
    assert [job.id for job in store.adopt("you", LATER, 9, WATCHED)] == ["one"]


def test_an_idle_server_takes_what_waits_longest_and_its_owner_may_not_start_it(store: JobStore) -> None:
    for name in "abc":
        store.add(record(name), [], "busy", LATER)
    store.put(record("a", QUEUED, RUNNING), "busy")
    store.want_cancelled("b")
    assert store.take_waiting("idle", LATER) is None  # it came just now
    store.tell("busy", LATER, [record("b", position=1), record("c", position=2)])
    taken = store.take_waiting("idle", LATER)
    assert taken is not None
    assert taken.id == "c"
    assert not store.put(record("c", QUEUED, RUNNING), "busy")
    assert store.take_waiting("idle", LATER) is None
    assert store.tell("busy", LATER, []) == {"a": False, "b": True}


def test_greater_priorities_are_taken_first(store: JobStore) -> None:
    for name, priority in zip("abc", (0, 1, 1), strict=True):
        store.add(record(name, position=1, priority=priority), [], "dead", BEFORE)
    taken = store.take_waiting("idle", LATER)
    assert taken is not None
    assert (taken.id, taken.priority) == ("b", 1)
    assert [job.id for job in store.adopt("me", LATER, 1, WATCHED)] == ["c"]


def test_pages_have_the_latest_first(store: JobStore) -> None:
    for name in "abcde":
        store.add(record(name), [], "me", LATER)
    store.put(record("b", QUEUED, RUNNING), "me")

    def page(state: JobState | None, limit: int, after: str | None) -> list[str] | None:
        found = store.page(Page(limit, after, state))
        return None if found is None else [job.id for job in found]

    assert page(None, 2, None) == ["e", "d"]
    assert page(None, 9, "d") == ["c", "b", "a"]
    assert page(QUEUED, 9, "d") == ["c", "a"]
    assert page(None, 9, "x") is None


def test_those_that_are_too_old_or_too_many(store: JobStore) -> None:
    for number, name in enumerate("abcd"):
        store.add(record(name), [], "me", LATER)
        ended = record(name, history=((QUEUED, 1.0), (JobState.CANCELLED, 100.0 + number)))
        store.put(ended, "me")
    store.add(record("live"), [], "me", LATER)
    assert [job.id for job in store.aged.surplus(101.0, 2)] == ["a", "b"]
    assert [job.id for job in store.aged.surplus(0.0, 1)] == ["a", "b", "c"]
    assert store.aged.surplus(0.0, 4) == []


def test_those_with_files_and_those_that_live(store: JobStore) -> None:
    for name in ("none", "some", "live"):
        store.add(record(name), [], "me", LATER)
    for name, files in (("none", ()), ("some", ("a.png",))):
        store.put(succeeded(record(name, QUEUED, RUNNING), "{}", files), "me")
    page = store.aged.with_files(0)
    assert page.jobs == [Ended("some", ("a.png",))]
    assert page.next is None
    assert store.aged.live() == {"live"}


def test_a_server_that_beats_keeps_its_jobs_whatever_the_clock_and_its_row_say(store: JobStore) -> None:
    store.add(record(), [], "owner", BEFORE)
    store.beat("owner")
    assert store.beat("me") == {"owner": 1, "me": 1}
    assert store.adopt("me", LATER, 9, WATCHED) == []
    heard_before = Silent({"owner": 1}, settled=True)
    store.beat("owner")  # meanwhile
    assert store.adopt("me", LATER, 9, heard_before) == []
    assert [job.id for job in store.adopt("me", BEFORE, 9, Silent({"owner": 2}))] == ["one"]
    assert store.adopt("me", LATER, 9, Silent({"me": 1}, settled=True)) == []  # one's own


def test_who_has_not_watched_for_a_lease_takes_only_what_was_given_up(store: JobStore) -> None:
    store.add(record("a"), [], "owner", BEFORE)
    store.add(record("b"), [], "owner", BEFORE)
    store.release(["b"], "owner")
    assert [job.id for job in store.adopt("me", LATER, 9, Silent())] == ["b"]
    assert store.claim("a", "me", LATER, Silent()) is None


def test_a_dead_server_is_forgotten_once_its_jobs_are_taken(store: JobStore) -> None:
    store.add(record(), [], "dead", LATER)
    store.beat("dead")
    dead = Silent({"dead": 1}, settled=True)
    assert [job.id for job in store.adopt("me", LATER, 9, dead)] == ["one"]
    assert store.beat("me") == {"dead": 1, "me": 1}
    assert store.adopt("me", LATER, 9, dead) == []
    assert store.beat("me") == {"me": 2}
    store.leave("me")
    assert [job.id for job in store.adopt("you", LATER, 9, Silent())] == ["one"]


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


@needs_postgres
def test_rows_that_somebody_locks_hold_up_nobody(cluster: Postgres) -> None:
    url = cluster.new_database()
    store = JobStore(url)
    for name in "ab":
        store.add(record(name), [], "owner", BEFORE)
    store.beat("owner")
    with psycopg.connect(url) as other:
        other.execute("SELECT * FROM jobs WHERE id = 'a' FOR UPDATE")
        began = time.monotonic()
        assert store.beat("owner")["owner"] == 2
        assert store.tell("owner", LATER, [record("a", step=3), record("b", step=4)]) == {"a": False, "b": False}
        assert [job.id for job in store.adopt("me", LATER, 9, Silent({"owner": 2}))] == ["b"]
        assert time.monotonic() - began < 0.5
        with pytest.raises(SQLAlchemyError, match="lock timeout"):
            store.put(record("a", QUEUED, RUNNING), "owner", brief=True)
        with pytest.raises(SQLAlchemyError, match="lock timeout"):
            store.want_cancelled("a")
        assert time.monotonic() - began < WAIT_S + 2
    assert store.tell("owner", LATER, [record("a", step=5)]) == {"a": False}
    store.close()


def test_a_locked_file_is_waited_for_briefly_and_read_meanwhile(tmp_path: Path) -> None:
    store = JobStore(f"sqlite:///{tmp_path}/jobs.sqlite3")
    store.add(record(), [], "me", LATER)
    with contextlib.closing(sqlite3.connect(tmp_path / "jobs.sqlite3", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        assert store.get("one") == record()
        assert time.monotonic() - began < 0.5
        for write, most_s in (
            (lambda: store.beat("me"), 1.0),
            (lambda: store.put(record("one", QUEUED, RUNNING), "me", brief=True), 1.0),
            (lambda: store.add(record("two"), [], "me", LATER), WAIT_S + 1),
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


def test_tables_of_another_version_are_named(store: JobStore, url: str) -> None:
    with store._engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(LoadError, match=r"of another version of this server.*9999"):
        JobStore(url)


@pytest.mark.parametrize("name", ["\0", "a\0b", "a\n", "\x1b", "é", "\ud800", "", "a" * 10_000])
def test_what_can_be_no_id_is_no_job(store: JobStore, name: str) -> None:
    assert store.get(name) is None
    assert store.page(Page(9, after=name)) is None
    assert store.claim(name, "me", LATER, WATCHED) is None
    store.want_cancelled(name)


def test_old_jobs_are_forgotten_in_batches_that_take_milliseconds(store: JobStore) -> None:
    rows, most_s = 20_000, 0.1
    ended = columns_of(record(files=("a.png",), request="{" + " " * 1000 + "}"))
    fixed = {"owner": None, "owned_until": 0.0, "unwanted": False, "state": "succeeded"}
    with store._writing.begin() as connection:
        for first in range(0, rows, 2000):
            numbers = range(first, first + 2000)
            connection.execute(insert(JobRow), [ended | fixed | {"id": f"j{n}", "ended": float(n)} for n in numbers])
    store.aged.surplus(0.0, 10)  # connects
    for ended_before, most in ((1e9, rows), (0.0, 1000)):
        began = time.monotonic()
        due = store.aged.surplus(ended_before, most)
        store.aged.delete([job.id for job in due])
        assert time.monotonic() - began < most_s
        assert len(due) == BATCH
    began = time.monotonic()
    page = store.aged.with_files(0)
    assert time.monotonic() - began < most_s
    assert page.jobs[0] == Ended("j200", ("a.png",))
    assert page.next == 700


def test_a_lease_counts_only_while_one_beats_oneself() -> None:
    leases = Leases(6.0)
    for second in range(3):
        leases.hear({"dead": 7, "other": second}, second)
    assert leases.silent() == Silent({}, settled=False)
    leases.hear({"dead": 7, "other": 2}, 7.0)  # the database was away for less than a lease
    assert leases.silent().beats == {}
    for second in range(8, 11):
        leases.hear({"dead": 7, "other": second}, second)
    assert leases.silent() == Silent({"dead": 7}, settled=True)
    assert leases.on_time_s() == 3.0
    leases.hear({"dead": 7, "other": 10}, 100.0)  # this server was suspended, or everything was
    assert leases.silent() == Silent({}, settled=False)
    for second in range(101, 107):
        leases.hear({"dead": 7, "other": 10}, second)
    assert leases.silent() == Silent({"dead": 7, "other": 10}, settled=True)


def test_the_least_lease_is_longer_than_the_wait_for_a_lock() -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 5"):
        JobsSettings(lease_s=4.9)
    assert JobsSettings(lease_s=5).lease_s > 2 * WAIT_S


def test_a_file_that_another_process_writes_to_is_waited_for(tmp_path: Path) -> None:
    store = JobStore(f"sqlite:///{tmp_path}/jobs.sqlite3")
    other = sqlite3.connect(tmp_path / "jobs.sqlite3", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with ThreadPoolExecutor(1) as pool:
        added = pool.submit(store.add, record(), [], "me", LATER)
        time.sleep(0.3)
        assert store.get("one") is None  # reading goes on
        other.execute("COMMIT")
        added.result(5)
    assert store.get("one") == record()
    other.close()
    store.close()
