"""Queries and headers of the routes of jobs."""

from __future__ import annotations

import pytest
from starlette.datastructures import Headers

from cache_dit_serving.api.job_parameters import idempotency_key, last_event_of, page_of_query, prefers_job, previews_of
from cache_dit_serving.errors import InvalidRequest
from cache_dit_serving.jobs.store.exchanged import Page
from cache_dit_serving.schemas.jobs import JobState


def test_a_query_chooses_a_page() -> None:
    assert page_of_query({}) == Page(20)
    assert page_of_query({"state": "queued", "limit": "7", "after": "a"}) == Page(7, "a", JobState.QUEUED)


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ({"limit": "0"}, "limit"),
        ({"limit": "101"}, "limit"),
        ({"limit": "1²"}, "limit"),
        ({"limit": "9" * 5000}, "limit"),
        ({"state": "lost"}, "state"),
        ({"state": ""}, "state"),
        ({"before": "a"}, "before"),
    ],
)
def test_a_parameter_that_is_wrong_is_named(query: dict[str, str], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        page_of_query(query)
    assert refused.value.param == param


def test_a_follower_wants_so_many_previews_or_does_not_say() -> None:
    assert previews_of({}) is None
    assert [previews_of({"previews": number}) for number in ("0", "20")] == [0, 20]
    for number in ("21", "-1", "", "1²", "9" * 5000):
        with pytest.raises(InvalidRequest, match="0 to 20") as refused:
            previews_of({"previews": number})
        assert refused.value.param == "previews"


@pytest.mark.parametrize("key", ["", "a b", "ä", "k" * 256])
def test_a_key_of_other_characters_or_too_many_is_refused(key: str) -> None:
    with pytest.raises(InvalidRequest, match="Idempotency-Key"):
        idempotency_key(Headers({"Idempotency-Key": key}))


def test_headers_that_are_left_out_ask_for_nothing() -> None:
    assert idempotency_key(Headers()) is None
    assert last_event_of(Headers()) == 0
    assert not prefers_job(Headers())
    assert idempotency_key(Headers({"Idempotency-Key": "k" * 255})) == "k" * 255
    assert last_event_of(Headers({"Last-Event-ID": "12"})) == 12
    assert prefers_job(Headers({"Prefer": "wait=5, Respond-Async; a=b"}))


@pytest.mark.parametrize("number", ["-1", "x", "1²", "1" * 15])
def test_an_event_number_that_is_none_is_refused(number: str) -> None:
    with pytest.raises(InvalidRequest, match="Last-Event-ID"):
        last_event_of(Headers({"Last-Event-ID": number}))
