"""Jobs in a database."""

from __future__ import annotations

import time
import timeit
from dataclasses import fields, replace
from functools import partial
from typing import Any

import pytest
from sqlalchemy import insert

from cache_dit_serving.errors import InternalError
from cache_dit_serving.jobs.job import failed, succeeded
from cache_dit_serving.jobs.record import FIELDS, JobRecord
from cache_dit_serving.jobs.store.exchanged import BATCH, Ended, KeyTaken, Page
from cache_dit_serving.jobs.store.leases import Silent
from cache_dit_serving.jobs.store.rows import columns_of
from cache_dit_serving.jobs.store.store import JobStore
from cache_dit_serving.jobs.store.tables import JobRow
from cache_dit_serving.schemas.jobs import JobState
from tests.support.jobs import QUEUED, RUNNING, record

LATER, BEFORE = time.time() + 1e9, 1.0
EVERY_FIELD: dict[str, Any] = {
    "id": "one",
    "history": ((QUEUED, 1000.0), (RUNNING, 1001.0)),
    "steps": 10,
    "request": "{}",
    "digest": "d",
    "step": 3,
    "cached_steps": 2,
    "result": "{}",
    "error": "{}",
    "files": ("a/b.png",),
    "key": "k",
    "caller": "c",
    "priority": 1,
    "attempts": 2,
    "position": 4,
    "starts_in_s": 1.5,
    "seconds_left": 2.5,
}
WATCHED = Silent(settled=True)
"""As a server has it that would have heard all others by now, and heard none."""


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


def test_every_field_of_a_job_is_kept(store: JobStore) -> None:
    job = JobRecord(**EVERY_FIELD)
    assert set(EVERY_FIELD) == set(FIELDS)
    defaults = {each.name: each.default for each in fields(JobRecord)}
    assert [name for name in FIELDS if EVERY_FIELD[name] == defaults[name]] == []
    store.add(job, [], "me", LATER)
    assert store.get("one") == job


def test_progress_is_told_without_a_word_about_the_state(store: JobStore) -> None:
    store.add(record(), [], "me", LATER)
    summary = JobRecord(**EVERY_FIELD)
    assert store.tell("me", LATER, [summary]) == {"one": (False, 0)}
    progress = {name: EVERY_FIELD[name] for name in ("step", "cached_steps", "position", "starts_in_s", "seconds_left")}
    assert store.get("one") == replace(record(), **progress)


def test_the_priority_of_a_job_that_waits_is_changed_and_no_owner_writes_over_it(store: JobStore) -> None:
    store.add(record(priority=1), [], "me", LATER)
    assert store.set_priority("one", 3)
    assert store.tell("me", LATER, [record(priority=1)]) == {"one": (False, 3)}
    assert store.put(record(priority=1), "me")
    assert store.get("one") == record(priority=3)
    assert store.put(record("one", QUEUED, RUNNING, priority=1), "me")
    assert not store.set_priority("one", 4)
    assert not any(store.set_priority(name, 4) for name in ("two", "o\0ne"))
    assert store.get("one") == record("one", QUEUED, RUNNING, priority=3)


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


@pytest.mark.parametrize("name", ["\0", "a\0b", "a\n", "\x1b", "é", "\ud800", "", "a" * 10_000])
def test_what_can_be_no_id_is_no_job(store: JobStore, name: str) -> None:
    assert store.get(name) is None
    assert store.page(Page(9, after=name)) is None
    assert store.claim(name, "me", LATER, WATCHED) is None
    store.want_cancelled(name)


def test_old_jobs_are_forgotten_in_batches_that_take_milliseconds(store: JobStore) -> None:
    rows, most_s, attempts = 20_000, 0.1, 5
    ended = columns_of(record(files=("a.png",), request="{" + " " * 1000 + "}"))
    fixed = {"owner": None, "owned_until": 0.0, "unwanted": False, "state": "succeeded"}
    with store._writing.begin() as connection:
        for first in range(0, rows, 2000):
            numbers = range(first, first + 2000)
            connection.execute(insert(JobRow), [ended | fixed | {"id": f"j{n}", "ended": float(n)} for n in numbers])
    store.aged.surplus(0.0, 10)  # connects

    def forget(ended_before: float, most: int) -> None:
        due = store.aged.surplus(ended_before, most)
        store.aged.delete([job.id for job in due])
        assert len(due) == BATCH

    def look() -> None:
        page = store.aged.with_files(0)
        assert page.jobs[0] == Ended(f"j{2 * attempts * BATCH}", ("a.png",))

    for what in (partial(forget, 1e9, rows), partial(forget, 0.0, 1000), look):
        # The machine may have done something else meanwhile.
        assert min(timeit.repeat(what, number=1, repeat=attempts)) < most_s
    assert store.aged.with_files(0).next == 1500
