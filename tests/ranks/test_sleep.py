"""Sleep and wake as commands to a rank."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from cache_dit_serving.config.settings import Settings
from cache_dit_serving.ranks import wire
from cache_dit_serving.ranks.rank import Rank


def test_a_rank_sleeps_without_being_undone_and_wakes() -> None:
    stops: list[bool] = []
    wakes: list[object] = []

    def sleep(stop: Any) -> int:
        stops.append(stop())
        return 7

    loaded: Any = SimpleNamespace(runner=SimpleNamespace(sleep=sleep, wake=wakes.append))
    link: Any = None
    rank = Rank(1, Settings(), link, None)
    assert rank._answer(loaded, wire.DOWN.validate_python({"kind": "sleep"}), []) == (wire.Done(slept=7), [])
    assert stops == [False]
    assert rank._answer(loaded, wire.DOWN.validate_python({"kind": "wake"}), []) == (wire.Done(), [])
    assert len(wakes) == 1
