"""Who has a job: leases, and the jobs of servers that do not live."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError

from cache_dit_serving.config.settings import JobsSettings
from cache_dit_serving.jobs.store.engine import WAIT_S, is_locked_row
from cache_dit_serving.jobs.store.leases import Leases, Silent
from cache_dit_serving.jobs.store.store import JobStore
from tests.support.jobs import QUEUED, RUNNING, record
from tests.support.postgres import Postgres, needs_postgres

LATER, BEFORE = time.time() + 1e9, 1.0
WATCHED = Silent(settled=True)
"""As a server has it that would have heard all others by now, and heard none."""


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
    summary = record(step=4, cached_steps=2, position=3, starts_in_s=1.5)
    assert store.tell("me", LATER, [summary]) == {"one": (False, 0)}
    assert store.adopt("you", LATER, 9, WATCHED) == []
    assert store.get("one") == summary
    store.want_cancelled("one")
    assert store.tell("me", LATER, []) == {"one": (True, 0)}
    assert store.tell("you", LATER, [record(step=9)]) == {}
    assert store.get("one") == summary
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
    assert store.tell("busy", LATER, []) == {"a": (False, 0), "b": (True, 0)}


def test_greater_priorities_are_taken_first(store: JobStore) -> None:
    for name, priority in zip("abc", (0, 1, 1), strict=True):
        store.add(record(name, position=1, priority=priority), [], "dead", BEFORE)
    taken = store.take_waiting("idle", LATER)
    assert taken is not None
    assert (taken.id, taken.priority) == ("b", 1)
    assert [job.id for job in store.adopt("me", LATER, 1, WATCHED)] == ["c"]


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
        assert store.tell("owner", LATER, [record("a", step=3), record("b", step=4)]) == {
            "a": (False, 0),
            "b": (False, 0),
        }
        assert [job.id for job in store.adopt("me", LATER, 9, Silent({"owner": 2}))] == ["b"]
        assert time.monotonic() - began < WAIT_S
        with pytest.raises(SQLAlchemyError, match="lock timeout"):
            store.put(record("a", QUEUED, RUNNING), "owner", brief=True)
        with pytest.raises(SQLAlchemyError, match="lock timeout") as locked:
            store.want_cancelled("a")
        assert is_locked_row(locked.value)
        assert time.monotonic() - began < 10 * WAIT_S
    assert store.tell("owner", LATER, [record("a", step=5)]) == {"a": (False, 0)}
    store.close()


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
