"""What answers say of the cache, as JSON and back."""

from __future__ import annotations

import math

from cache_dit_serving.caching.report import BlockListStats
from tests.support.published import disagreements


def test_differences_that_are_not_numbers_go_through_json() -> None:
    record = BlockListStats(
        transformer="transformer",
        block_list="blocks",
        cached_steps=[2],
        diffs={1: math.nan, 2: [0.5, math.nan]},
        cfg_cached_steps=[],
        cfg_diffs={},
        blocks=4,
        reused_blocks=1,
    )
    again = BlockListStats.model_validate_json(record.model_dump_json(exclude_none=True))
    assert repr(again) == repr(record)
    assert disagreements(record.model_dump(mode="json"), BlockListStats.model_json_schema()) == []
