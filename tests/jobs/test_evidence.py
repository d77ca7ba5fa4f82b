"""Evidence of live traffic in the database of jobs."""

from __future__ import annotations

import threading

import pytest

from cache_dit_serving.jobs.store import evidence
from cache_dit_serving.jobs.store.exchanged import Entry
from cache_dit_serving.jobs.store.store import JobStore


def entry(number: int, server: str = "me") -> Entry:
    return Entry("sample", "e1", f'{{"number": {number}}}', server)


def test_every_server_reads_all_entries_in_one_order(url: str) -> None:
    one, other = JobStore(url), JobStore(url)
    try:
        writers = [
            threading.Thread(
                target=lambda store=store, name=name: [store.evidence.add([entry(n, name)]) for n in range(20)]
            )
            for store, name in ((one, "one"), (other, "other"))
        ]
        seen: list[Entry] = []
        for writer in writers:
            writer.start()
        while any(writer.is_alive() for writer in writers):
            seen += one.evidence.after(seen[-1].number if seen else 0, 1000)
        seen += one.evidence.after(seen[-1].number if seen else 0, 1000)
        assert len(seen) == 40, "an entry came with a number below one that was seen"
        assert other.evidence.after(0, 1000) == seen
        assert [each.body for each in seen if each.server == "one"] == [entry(n).body for n in range(20)]
        assert other.evidence.after(seen[9].number, 5) == seen[10:15]
    finally:
        one.close()
        other.close()


def test_the_oldest_entries_give_way(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "KEPT", 3)
    store.evidence.add([entry(number) for number in range(5)])
    store.evidence.add([entry(5)])
    assert [each.body for each in store.evidence.after(0, 10)] == [entry(n).body for n in (3, 4, 5)]
