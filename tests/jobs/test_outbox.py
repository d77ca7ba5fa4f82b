"""Webhooks that wait, and how they share the sender."""

from __future__ import annotations

from collections import Counter

from sqlalchemy import insert

from cache_dit_serving.jobs.store.outbox import LOOKED_AT
from cache_dit_serving.jobs.store.store import JobStore
from cache_dit_serving.jobs.store.tables import WebhookRow
from cache_dit_serving.jobs.webhooks import MOST_AT_ONCE, MOST_OF_CALLER, MOST_OF_HOST, Sending, Webhook
from cache_dit_serving.schemas.jobs import JobState
from tests.support.jobs import QUEUED, RUNNING, record

NOW, UNTIL = 1000.0, 1030.0


def put(store: JobStore, count: int, host: str, caller: str = "", due: float = 0.0) -> None:
    rows = [
        {"id": f"{host}-{due}-{number}", "job": "j", "url": f"http://{host}/", "body": "{}", "attempts": 0}
        | {"host": host, "caller": caller, "due": due + number / 1000}
        for number in range(count)
    ]
    with store.outbox._engine.begin() as connection:
        connection.execute(insert(WebhookRow), rows)


def hosts(taken: list[Webhook]) -> Counter[str]:
    return Counter(webhook.host for webhook in taken)


def test_a_receiver_that_hangs_holds_no_other_up(store: JobStore) -> None:
    put(store, LOOKED_AT + 40, "hangs.example")
    put(store, 3, "honest.example", due=500.0)
    sending = Sending()
    assert hosts(store.outbox.take(NOW, UNTIL, sending)) == {"hangs.example": MOST_OF_HOST}
    (one, two) = store.outbox.take(NOW, UNTIL, sending)
    assert {one.host, two.host} == {"honest.example"}
    assert store.outbox.take(NOW, UNTIL, sending) == []
    sending.end(one)
    store.outbox.done(one.id)
    assert hosts(store.outbox.take(NOW, UNTIL, sending)) == {"honest.example": 1}


def test_a_caller_with_many_hosts_that_hang_holds_no_other_up(store: JobStore) -> None:
    for number in range(MOST_AT_ONCE):
        put(store, 2, f"h{number}.example", caller="many")
    put(store, 1, "honest.example", caller="few", due=500.0)
    sending = Sending()
    taken = store.outbox.take(NOW, UNTIL, sending)
    assert Counter(webhook.caller for webhook in taken) == {"many": MOST_OF_CALLER, "few": 1}


def test_callers_without_names_share_all_places(store: JobStore) -> None:
    for number in range(MOST_AT_ONCE):
        put(store, 2, f"h{number}.example")
    sending = Sending()
    assert len(store.outbox.take(NOW, UNTIL, sending)) == MOST_AT_ONCE
    assert sending.is_full()
    assert store.outbox.take(NOW, UNTIL, sending) == []


def test_a_message_is_in_the_hands_of_one_server_for_each_attempt(store: JobStore) -> None:
    put(store, 1, "a.example")
    here, there = Sending(), Sending()
    (taken,) = store.outbox.take(NOW, UNTIL, here)
    assert taken.attempts == 1
    assert store.outbox.take(NOW, UNTIL, there) == []
    (again,) = store.outbox.take(UNTIL, UNTIL + 30, there)
    assert (again.id, again.attempts) == (taken.id, 2)
    store.outbox.again(taken.id, UNTIL + 60)
    assert store.outbox.take(UNTIL + 59, UNTIL + 90, Sending()) == []
    store.outbox.done(taken.id)
    assert store.outbox.take(UNTIL + 61, UNTIL + 90, Sending()) == []


def test_a_state_that_is_written_twice_is_told_once(store: JobStore) -> None:
    store.add(record(), [], "me", 1e12)
    for name, *states in (("first", RUNNING), ("again", RUNNING), ("end", RUNNING, JobState.CANCELLED)):
        message = Webhook(name, "one", "http://honest.example/", "{}", host="honest.example")
        assert store.put(record("one", QUEUED, *states), "me", webhooks=[message])
    taken = store.outbox.take(1e12, 2e12, Sending())
    assert sorted(webhook.id for webhook in taken) == ["end", "first"]
