"""Limits of callers in the database: two stores are two servers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text

from cache_dit_serving.jobs.store.leases import Silent
from cache_dit_serving.jobs.store.limits import AHEAD_S
from cache_dit_serving.jobs.store.store import JobStore

NOBODY = Silent()


@pytest.fixture
def other(url: str, store: JobStore) -> Iterator[JobStore]:
    opened = JobStore(url)
    yield opened
    opened.close()


def begin(store: JobStore, place: str, server: str, most: int | None = 1, silent: Silent = NOBODY) -> bool:
    counted, _ = store.limits.begin(place, "ann", server, most, silent)
    return counted


def pass_time(store: JobStore, seconds: float) -> None:
    """Have all requests lie further back."""
    with store._writing.begin() as connection:
        connection.execute(text(f"UPDATE caller_rates SET due = due - {seconds}"))


def test_requests_of_a_minute_are_those_at_all_servers(store: JobStore, other: JobStore) -> None:
    servers = [store, other] * 3
    waits = [server.limits.take("ann", 3) for server in servers]
    assert waits[:3] == [0, 0, 0]
    assert all(19 < wait_s <= 20 for wait_s in waits[3:])
    assert other.limits.take("bob", 3) == 0
    pass_time(store, waits[-1])
    assert [other.limits.take("ann", 3), store.limits.take("ann", 3) > 19] == [0, True]


@pytest.mark.parametrize(("per_minute", "size"), [(0.5, 1), (2, 2), (2.5, 2), (60, 60)])
def test_a_rate_admits_a_minutes_requests_at_once_however_long_nobody_came(
    store: JobStore, per_minute: float, size: int
) -> None:
    for _ in range(2):
        began = time.monotonic()
        waits = [store.limits.take("ann", per_minute)]
        while waits[-1] == 0:
            waits.append(store.limits.take("ann", per_minute))
        added = (time.monotonic() - began) * per_minute / 60  # a busy machine takes longer than one needs to come back
        assert size <= len(waits) - 1 <= size + added
        assert waits[-1] <= 60 / per_minute
        pass_time(store, 1e9)


def test_a_database_whose_clock_is_set_back_admits_at_once(store: JobStore) -> None:
    assert [store.limits.take("ann", 1) > 0 for _ in range(2)] == [False, True]
    pass_time(store, -AHEAD_S - 1)
    assert [store.limits.take("ann", 1) > 0 for _ in range(2)] == [False, True]


def test_requests_at_once_are_counted_one_by_one(store: JobStore, other: JobStore) -> None:
    with ThreadPoolExecutor(8) as threads:
        waits = list(threads.map(lambda number: (store, other)[number % 2].limits.take("ann", 7), range(40)))
    assert waits.count(0) == 7


def test_live_generations_are_those_at_all_servers(store: JobStore, other: JobStore) -> None:
    assert begin(store, "1", "a", 2)
    assert begin(other, "2", "b", 2)
    for server in (store, other):
        assert server.limits.begin("3", "ann", "a", 2, NOBODY) == (False, 2)
    assert other.limits.begin("4", "bob", "b", 1, NOBODY) == (True, 0)
    assert store.limits.end("1", "a")
    assert begin(other, "3", "b", 2)


def test_generations_that_begin_at_once_are_counted_one_by_one(store: JobStore, other: JobStore) -> None:
    with ThreadPoolExecutor(8) as threads:
        ends = list(threads.map(lambda number: begin((store, other)[number % 2], str(number), "a", 3), range(24)))
    assert ends.count(True) == 3


def test_a_job_that_another_server_takes_over_keeps_its_one_place(store: JobStore, other: JobStore) -> None:
    assert begin(store, "job", "a")
    assert begin(other, "job", "b", None)
    assert not store.limits.end("job", "a")
    assert not begin(store, "next", "a")
    assert other.limits.end("job", "b")
    assert begin(store, "next", "a")


def test_places_of_a_server_that_is_silent_for_its_lease_are_free(store: JobStore, other: JobStore) -> None:
    for server in "ab":
        store.beat(server)
    assert begin(store, "1", "a")
    assert begin(other, "2", "b", 1, Silent({"a": 1}))
    assert begin(store, "3", "a", None)
    store.beat("a")  # it lives after all
    assert not begin(other, "4", "b", 2, Silent({"a": 1}))


@pytest.mark.parametrize("ends", ["in order", "by others"])
def test_a_server_that_is_forgotten_leaves_no_place(store: JobStore, other: JobStore, ends: str) -> None:
    store.beat("a")
    assert begin(store, "1", "a")
    if ends == "in order":
        store.leave("a")
    else:
        other.adopt("b", 0.0, 1, Silent({"a": 1}))
    with store._engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM live_places")) == 0


def test_places_of_servers_that_nobody_knows_are_free_once_each_living_one_was_seen(store: JobStore) -> None:
    assert begin(store, "1", "gone")
    assert not begin(store, "2", "a", 1, Silent(settled=False))
    assert begin(store, "2", "a", 1, Silent(settled=True))
