"""Limits of a key at several workers."""

from __future__ import annotations

from pathlib import Path

import pytest

from cache_dit_serving.api.access import Access
from cache_dit_serving.api.matching import Match, match
from cache_dit_serving.api.operation import Operation
from cache_dit_serving.config.settings import ServerSettings
from cache_dit_serving.errors import RateLimited
from cache_dit_serving.jobs.shared import CallerCounts

KEY = "sk-0123456789abcdef"
SETTINGS = ServerSettings.model_validate({"api_keys": [{"name": "shop", "key": KEY, "requests_per_minute": 2}]})


def generate() -> Operation:
    found = match("POST", "/generate")
    assert isinstance(found, Match)
    return found.operation


@pytest.mark.parametrize("shared", [True, False])
def test_requests_a_minute_hold_over_all_workers_that_share_their_counts(shared: bool, tmp_path: Path) -> None:
    counts = [CallerCounts(tmp_path), CallerCounts(tmp_path)] if shared else [None, None]
    one, other = (Access(SETTINGS, each) for each in counts)
    headers = {"authorization": f"Bearer {KEY}"}
    for worker in (one, other):
        assert worker.admit(headers, generate()).name == "shop"
    if shared:
        with pytest.raises(RateLimited, match="2 generations a minute"):
            one.admit(headers, generate())
    else:
        one.admit(headers, generate())
        with pytest.raises(RateLimited, match="2 generations a minute"):
            one.admit(headers, generate())
