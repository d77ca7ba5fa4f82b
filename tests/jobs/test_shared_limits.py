"""Limits of callers as servers on one database hold them: two counts are two servers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from cache_dit_serving.jobs import metrics, shared_limits
from cache_dit_serving.jobs.generation import Generation
from cache_dit_serving.jobs.shared_limits import SharedLimits
from tests.support.limits import server, until
from tests.support.records import FAST, call

Test = Callable[[SharedLimits, SharedLimits], Awaitable[None]]


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may take longer than the second in which a request must be counted."""
    monkeypatch.setattr(shared_limits, "ANSWER_S", 60)


def run(url: str, test: Test) -> None:
    async def opened() -> None:
        async with server(url) as one, server(url) as other:
            await test(one, other)

    asyncio.run(opened())


def generation() -> Generation:
    return Generation("request", call(FAST), caller="ann")


def unshared(limit: str) -> float:
    return float(metrics.UNSHARED_LIMITS.labels(limit)._value.get())


def test_a_place_is_free_at_all_servers_once_its_generation_was_ended(url: str) -> None:
    async def test(one: SharedLimits, other: SharedLimits) -> None:
        first, second = generation(), generation()
        assert await one.begin(first, 1) is None
        assert await other.begin(second, 1) == 1
        first.resolve([])
        await one.end(first)
        assert await other.begin(second, 1) is None
        await other.end(second)  # the worker refused it
        assert await one.begin(generation(), 1) is None

    run(url, test)


def test_a_place_is_free_soon_after_its_generation_although_nobody_waits(url: str) -> None:
    async def test(one: SharedLimits, other: SharedLimits) -> None:
        left = generation()
        assert await one.begin(left, 1) is None
        left.fail(RuntimeError("its caller had gone"))
        await until(lambda: not one._places)
        assert await other.begin(generation(), 1) is None

    run(url, test)


def test_a_caller_that_goes_while_it_is_counted_leaves_no_place(url: str) -> None:
    async def test(one: SharedLimits, other: SharedLimits) -> None:
        for _ in range(5):
            leaving = asyncio.create_task(one.begin(generation(), 1))
            await asyncio.sleep(0)
            leaving.cancel()
            await until(lambda: not one._places)
        assert await other.begin(generation(), 1) is None

    run(url, test)


def test_a_caller_that_was_refused_is_not_counted_again_until_it_may_send(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(one: SharedLimits, other: SharedLimits) -> None:
        assert await one.take("ann", 1) == 0
        first = await other.take("ann", 1)
        assert first is not None
        with monkeypatch.context() as patch:
            patch.setattr(SharedLimits, "_ask", None)  # the database is not asked
            again = await other.take("ann", 1)
        assert again is not None
        assert 0 < again < first <= 60
        assert await other.take("bob", 1) == 0
        raised = await other.take("ann", 60)
        assert raised is not None
        assert raised <= 1

    run(url, test)


def test_a_database_that_is_locked_holds_nobody_up_for_long_and_counts_again_afterwards(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_limits, "AGAIN_S", 0.2)
    file = tmp_path / "jobs.sqlite3"

    async def test(one: SharedLimits, other: SharedLimits) -> None:
        held = generation()
        assert await one.begin(held, 1) is None
        before = [unshared("requests_per_minute"), unshared("max_live")]
        with contextlib.closing(sqlite3.connect(file, isolation_level=None, timeout=60)) as lock:
            lock.execute("BEGIN IMMEDIATE")
            began = time.monotonic()
            assert await other.take("ann", 1) is None
            assert await other.take("ann", 1) is None
            assert await other.begin(generation(), 1) is None
            held.resolve([])
            await one.end(held)
            assert time.monotonic() - began < 20
            lock.execute("ROLLBACK")
        assert [unshared("requests_per_minute") - before[0], unshared("max_live") - before[1]] == [2, 1]
        [line] = [each.getMessage() for each in caplog.records if "this server alone" in each.getMessage()]
        assert "locked" in line
        await until(lambda: not one._places)
        await until(lambda: other._database.heart.beating)
        await asyncio.sleep(shared_limits.AGAIN_S)
        assert await other.take("ann", 1) == 0
        assert "hold over all servers again" in caplog.text

    with caplog.at_level(logging.INFO, "cache_dit_serving"):
        run(f"sqlite:///{file}", test)
