"""What answers say of the cache, as JSON and back."""

from __future__ import annotations

import math
from collections.abc import Mapping

from cache_dit_serving.caching.checks import CacheSupport
from cache_dit_serving.caching.evidence import Record, merge_reports, report_of
from cache_dit_serving.caching.report import BlockListStats
from cache_dit_serving.caching.settings import CacheOptions, CacheSettings
from cache_dit_serving.caching.speed_settings import SpeedsSettings
from cache_dit_serving.caching.speeds import SpeedLadder
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


STEPS = [2, 3, 5]


def limited(base: CacheSettings, request: Mapping[str, object] | None, cached: list[int] = STEPS) -> str | None:
    """The reason of a request that reused these of eight steps under a configuration."""
    speeds = SpeedLadder(base, SpeedsSettings(), CacheSupport({"transformer.blocks": 12}, {}), 8)
    options = None if request is None else CacheOptions.model_validate(request)
    choice = speeds.choose(None, options, num_inference_steps=8, passes=1)
    assert choice.settings is not None
    part = BlockListStats(
        transformer="transformer",
        block_list="blocks",
        cached_steps=cached,
        diffs={},
        cfg_cached_steps=[],
        cfg_diffs={},
        blocks=32,
        reused_blocks=4,
    )
    report = report_of(choice, Record(choice.settings, 1, {"transformer": 8}, [part]), 8)
    merged = merge_reports([report, report])
    assert (merged.reason, merged.reason_code) == (report.reason, report.reason_code)
    assert (report.reason_code == "limited") is (report.reason is not None)
    return report.reason


def test_a_limit_that_a_request_inherits_and_reaches_is_told() -> None:
    most = CacheSettings(max_cached_steps=3, max_warmup_steps=2)
    in_a_row = CacheSettings(max_continuous_cached_steps=2, max_warmup_steps=2)
    own: dict[str, object] = {"residual_diff_threshold": 0.5}
    assert limited(most, own) == (
        "max_cached_steps 3 of the server's configuration limits what was reused; "
        "send cache.max_cached_steps to change it (-1: no limit)"
    )
    assert "max_continuous_cached_steps 2 of" in (limited(in_a_row, own) or "")
    assert limited(in_a_row, own, [2, 4, 6]) is None
    assert limited(most, own, [2, 3]) is None
    # A request that takes the configuration as it is, or sets the limit itself, knows of it.
    assert limited(most, None) is None
    assert limited(most, own | {"max_cached_steps": 3}) is None
    assert limited(CacheSettings(max_warmup_steps=2), own) is None
