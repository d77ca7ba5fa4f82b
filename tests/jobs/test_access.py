"""The database of jobs as an event loop and a heart see it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path

import pytest

from cache_dit_serving.errors import StoreUnavailable
from cache_dit_serving.jobs.store import heart as heart_module
from cache_dit_serving.jobs.store import store as store_module
from cache_dit_serving.jobs.store.access import StoreAccess
from cache_dit_serving.jobs.store.engine import WAIT_S
from cache_dit_serving.jobs.store.exchanged import Page
from cache_dit_serving.jobs.store.heart import Heart
from cache_dit_serving.jobs.store.store import JobStore
from tests.support.jobs import record
from tests.support.waiting import wait_until

LATER = time.time() + 1e9
LEASE_S = 1.5


def exchange(file: Path, other: Path) -> None:
    for beside in file.parent.glob("jobs.sqlite3-*"):
        beside.unlink()
    other.rename(file)


@contextlib.contextmanager
def locked(file: Path) -> Iterator[None]:
    with contextlib.closing(sqlite3.connect(file, isolation_level=None, timeout=60)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield
        other.execute("ROLLBACK")


def run(file: Path, test: Callable[[StoreAccess], Coroutine[None, None, None]]) -> None:
    async def opened() -> None:
        access = StoreAccess(f"sqlite:///{file}")
        try:
            await test(access)
        finally:
            await asyncio.to_thread(access.close)

    asyncio.run(opened())


def test_a_locked_database_answers_reads_at_once_and_refuses_all_writes_within_seconds(tmp_path: Path) -> None:
    async def test(access: StoreAccess) -> None:
        assert await access.open()
        await access.write(lambda store: store.add(record(), [], "me", LATER))
        with locked(tmp_path / "jobs.sqlite3"):
            began = time.monotonic()
            writes = [asyncio.ensure_future(access.write(lambda store: store.want_cancelled("one"))) for _ in range(9)]
            await asyncio.sleep(0)
            assert await access.read(lambda store: store.page(Page(9))) == [record()]
            assert time.monotonic() - began < WAIT_S, "the read waits for a write"
            refused = await asyncio.gather(*writes, return_exceptions=True)
            assert {type(each) for each in refused} == {StoreUnavailable}
            assert time.monotonic() - began < (len(writes) - 1) * WAIT_S, "one write waits for another"
        await access.write(lambda store: store.want_cancelled("one"))
        assert not access.silent

    run(tmp_path / "jobs.sqlite3", test)


def test_what_is_not_open_yet_is_loading_and_what_cannot_be_opened_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(access: StoreAccess) -> None:
        faults = [access.fault]
        with pytest.raises(StoreUnavailable, match="the server is loading") as loading:
            await access.read(lambda store: store.get("one"))
        assert loading.value.code == "loading"
        (tmp_path / "jobs.sqlite3").write_text("no database " * 500)
        for _ in range(3):
            assert not await access.open()
        with pytest.raises(StoreUnavailable, match="log says why") as failed:
            await access.read(lambda store: store.get("one"))
        assert failed.value.code == "store_unavailable"
        faults.append(access.fault)
        (tmp_path / "jobs.sqlite3").unlink()
        assert await access.open()
        assert [*faults, access.fault] == [None, failed.value.message, None]

    with caplog.at_level(logging.INFO, "cache_dit_serving.jobs"):
        run(tmp_path / "jobs.sqlite3", test)
    refused, opened = [(each.levelname, each.getMessage()) for each in caplog.records]
    assert refused == (
        "WARNING",
        "the database of jobs is not open, and is tried again each second: jobs.database cannot be opened: "
        "file is not a database; name a file in a folder that this server's user may write to",
    )
    assert opened == ("INFO", "the database of jobs is open")


def test_tables_of_another_version_are_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "jobs.sqlite3"
    JobStore(f"sqlite:///{file}").close()
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("UPDATE alembic_version SET version_num = '9999'")
        other.execute("ALTER TABLE jobs DROP COLUMN priority")

    async def test(access: StoreAccess) -> None:
        for _ in range(3):
            assert not await access.open()
        with pytest.raises(StoreUnavailable, match="log says why"):
            await access.write(lambda store: store.add(record(), [], "me", LATER))

    with caplog.at_level(logging.INFO):
        run(file, test)
    [line] = [each for each in caplog.records if each.name.startswith("cache_dit_serving")]
    assert "9999" in line.getMessage()
    assert line.exc_info is None


def test_a_fault_that_nobody_expected_is_no_endless_loading(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(url: str) -> JobStore:
        raise TypeError(url)

    async def test(access: StoreAccess) -> None:
        for _ in range(3):
            assert not await access.open()
        assert access.fault is not None
        with pytest.raises(StoreUnavailable, match="log says why") as failed:
            await access.read(lambda store: store.get("one"))
        assert failed.value.code == "store_unavailable"

    monkeypatch.setattr(store_module, "JobStore", fails)
    run(tmp_path / "jobs.sqlite3", test)
    [line] = caplog.records
    assert line.exc_info is not None
    assert line.levelname == "ERROR"


def test_a_deleted_file_makes_it_unavailable_until_one_is_put_there(tmp_path: Path) -> None:
    file, kept = tmp_path / "jobs.sqlite3", tmp_path / "other" / "jobs.sqlite3"

    async def test(access: StoreAccess) -> None:
        assert await access.open()
        file.unlink()
        for ask in (access.read, access.write):
            with pytest.raises(StoreUnavailable):
                await ask(lambda store: store.add(record(), [], "me", LATER))
        assert await access.open()
        assert not file.exists()
        another = JobStore(f"sqlite:///{kept}")
        another.add(record("kept"), [], "me", LATER)
        another.close()
        exchange(file, kept)
        assert await access.open()
        assert await access.read(lambda store: store.get("kept")) == record("kept")

    run(file, test)


@pytest.fixture
def hearts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Heart]]:
    """Of two servers that share a database."""
    monkeypatch.setattr(heart_module, "BEAT_S", 0.1)
    stores = [JobStore(f"sqlite:///{tmp_path}/jobs.sqlite3") for _ in range(2)]
    beating = [Heart(name, LEASE_S, lambda store=store: store) for name, store in zip("ab", stores, strict=True)]  # type: ignore[misc]
    for each in beating:
        each.start()
    yield beating
    for each in beating:
        each.stop()
    for store in stores:
        store.close()


def test_a_lock_longer_than_a_lease_makes_nobody_dead(hearts: list[Heart], tmp_path: Path) -> None:
    wait_until(lambda: all(each.silent().settled for each in hearts))
    with locked(tmp_path / "jobs.sqlite3"):
        time.sleep(2 * LEASE_S)
    end = time.monotonic() + LEASE_S
    while time.monotonic() < end:
        for each in hearts:
            assert each.silent().beats == {}
        time.sleep(0.02)


def test_a_server_that_ends_without_a_word_is_dead_after_a_lease(hearts: list[Heart]) -> None:
    wait_until(lambda: all(each.silent().settled for each in hearts))
    hearts[1]._stopping.set()
    began = time.monotonic()
    wait_until(lambda: "b" in hearts[0].silent().beats)
    assert time.monotonic() - began > LEASE_S / 2


def test_a_beat_goes_on_while_every_other_connection_is_taken(hearts: list[Heart]) -> None:
    wait_until(lambda: all(each.silent().settled for each in hearts))
    store = hearts[0]._store()
    assert store is not None
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(Exception):
            while True:
                stack.enter_context(store._engine.connect())
        wait_until(lambda: hearts[0].on_time_s() > 1)
