"""Jobs in a database."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.exc import SQLAlchemyError

from cache_dit_serving.errors import InternalError, LoadError
from cache_dit_serving.jobs.job import failed, succeeded
from cache_dit_serving.jobs.store.store import JobStore, KeyTaken, Page
from cache_dit_serving.jobs.store.tables import Base
from cache_dit_serving.schemas.jobs import JobState
from tests.support.jobs import QUEUED, RUNNING, record
from tests.support.postgres import Postgres, needs_postgres, postgres

LATER, BEFORE = time.time() + 1e9, 1.0


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
    store.delete("one")
    store.add(record("two", key="k"), [], "me", LATER)
    for name in ("three", "four"):  # no key is no key
        store.add(record(name), [], "me", LATER)


def test_jobs_that_nobody_has_are_taken_over_once(store: JobStore) -> None:
    for name, until in (("a", BEFORE), ("b", LATER), ("c", BEFORE)):
        store.add(record(name), [], "dead", until)
    store.add(record("d"), [], "me", LATER)
    store.put(record("d"), "me", keep=False)
    with ThreadPoolExecutor(4) as pool:
        taken = list(pool.map(lambda owner: store.adopt(owner, LATER, 9), "wxyz"))
    names = [job.id for some in taken for job in some]
    assert sorted(names) == ["a", "c", "d"]
    assert store.claim("b", "me", LATER) is None
    assert store.adopt("me", LATER, 9) == []


def test_who_says_that_it_lives_keeps_its_jobs(store: JobStore) -> None:
    store.add(record(), [], "me", BEFORE)
    told = record(step=4, cached_steps=2, position=3, starts_in_s=1.5)
    assert store.beat("me", LATER, [told]) == {"one": False}
    assert store.adopt("you", LATER, 9) == []
    assert store.get("one") == told
    store.want_cancelled("one")
    assert store.beat("me", LATER, []) == {"one": True}
    assert store.beat("you", LATER, [record(step=9)]) == {}
    assert store.get("one") == told
    store.release(["one"], "you")
    assert store.adopt("you", LATER, 9) == []
    store.release(["one"], "me")
    assert [job.id for job in store.adopt("you", LATER, 9)] == ["one"]


def test_an_idle_server_takes_what_waits_longest_and_its_owner_may_not_start_it(store: JobStore) -> None:
    for name in "abc":
        store.add(record(name), [], "busy", LATER)
    store.put(record("a", QUEUED, RUNNING), "busy")
    store.want_cancelled("b")
    assert store.take_waiting("idle", LATER) is None  # it came just now
    store.beat("busy", LATER, [record("b", position=1), record("c", position=2)])
    taken = store.take_waiting("idle", LATER)
    assert taken is not None
    assert taken.id == "c"
    assert not store.put(record("c", QUEUED, RUNNING), "busy")
    assert store.take_waiting("idle", LATER) is None
    assert store.beat("busy", LATER, []) == {"a": False, "b": True}


def test_greater_priorities_are_taken_first(store: JobStore) -> None:
    for name, priority in zip("abc", (0, 1, 1), strict=True):
        store.add(record(name, position=1, priority=priority), [], "dead", BEFORE)
    taken = store.take_waiting("idle", LATER)
    assert taken is not None
    assert (taken.id, taken.priority) == ("b", 1)
    assert [job.id for job in store.adopt("me", LATER, 1)] == ["c"]


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
    assert sorted(job.id for job in store.surplus(101.0, 2)) == ["a", "b"]
    assert sorted(job.id for job in store.surplus(0.0, 1)) == ["a", "b", "c"]
    assert store.surplus(0.0, 4) == []


def test_those_with_files_and_those_that_live(store: JobStore) -> None:
    for name in ("none", "some", "live"):
        store.add(record(name), [], "me", LATER)
    for name, files in (("none", ()), ("some", ("a.png",))):
        store.put(succeeded(record(name, QUEUED, RUNNING), "{}", files), "me")
    jobs, live = store.with_files()
    assert [job.files for job in jobs] == [("a.png",)]
    assert live == {"live"}


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
