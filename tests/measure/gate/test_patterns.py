"""Gate of a tiny pipeline of each of cache-dit's block patterns that a class of the table has."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from cache_dit import BlockAdapter, ForwardPattern
from cache_dit.caching.block_adapters import BlockAdapterRegister

from cache_dit_serving.caching.speed_settings import SpeedsSettings
from cache_dit_serving.measure.gate.gate import Gate
from cache_dit_serving.measure.gate.wanted import wanted
from cache_dit_serving.measure.search.in_process import InProcess
from cache_dit_serving.measure.search.points import cases_of
from tests.support.families import build_pipeline
from tests.support.family_runs import load_family

# Tiny weights and old families warn of much, none of it this project's.
pytestmark = pytest.mark.filterwarnings("default")
CLASSES = {
    ForwardPattern.Pattern_0: "CogView3Plus",
    ForwardPattern.Pattern_1: "QwenImage",
    ForwardPattern.Pattern_2: "Wan",
    ForwardPattern.Pattern_3: "Sana",
}
SIZES = {"Sana": {"width": 64, "height": 64}}
"""Sizes at which a side has the 11 px that SSIM needs."""


@pytest.mark.parametrize(("pattern", "name"), CLASSES.items(), ids=CLASSES.values())
def test_a_cache_on_each_block_pattern_reuses_steps_and_stays_near(
    pattern: ForwardPattern, name: str, tmp_path: Path
) -> None:
    adapter = BlockAdapter.normalize(BlockAdapterRegister.get_adapter(build_pipeline(name)))
    assert adapter.forward_pattern == [[pattern]]
    drawer = InProcess(load_family(name, tmp_path), SIZES.get(name, {}), lambda: False)
    try:
        asked = wanted(["psnr_db=10"], ["balanced", "fast"], SpeedsSettings(), drawer.subject)
        verdict = Gate(drawer, cases_of(["a red apple", "a blue star"], (0,), 2), asked).run()
    finally:
        drawer.close()
    assert [each.speed for each in verdict.judged] == ["balanced", "fast"]
    for each in verdict.judged:
        assert each.holds, each
        assert all(sample.cached_steps > 0 for sample in each.result.samples.values())
        assert all(math.isfinite(held.worst) for held in each.held)
    assert any(held.worst < 100 for held in verdict.judged[-1].held if held.measure == "psnr_db"), "it approximates"
