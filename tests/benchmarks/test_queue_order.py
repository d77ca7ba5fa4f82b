"""The page of the queue's orders: its simulation, over the queue of the server."""

from __future__ import annotations

import statistics

import pytest

from benchmarks import queue_order


def test_the_shortest_first_wait_less_on_average(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_order, "HOURS", 1)
    means = {}
    for order in queue_order.ORDERS:
        waits = queue_order.simulated(order, 0.95)
        assert len(waits) > 1000
        means[order] = statistics.mean(wait.seconds for wait in waits)
    assert means["shortest"] < means["arrival"]
