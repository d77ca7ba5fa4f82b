"""The secret of a group of ranks, without ranks."""

from __future__ import annotations

import queue
import socket

import pytest

from cache_dit_serving.ranks import group, wire
from tests.support.ranks import spread


def placed(monkeypatch: pytest.MonkeyPatch) -> wire.Place:
    """The place that this machine's agent gets of a new group."""
    places: queue.Queue[wire.Place] = queue.Queue()

    def run_ranks(place: wire.Place, server: str, meeting: socket.socket | None) -> None:
        places.put(place)

    monkeypatch.setattr(group, "run_ranks", run_ranks)
    started = group.Group(spread())
    try:
        started.start(lambda stage: None)
        return places.get(timeout=60)
    finally:
        started.close()


def test_the_name_of_a_group_in_torchs_stores_tells_nothing_of_its_token(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = placed(monkeypatch), placed(monkeypatch)
    assert len({one.group, one.token, other.group, other.token}) == 4
    for place in (one, other):
        assert place.group not in place.token
        assert len(bytes.fromhex(place.token)) >= 16
