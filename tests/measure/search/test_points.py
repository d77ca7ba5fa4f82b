"""Points and cases of a search: settings with steps, prompts with seeds."""

from __future__ import annotations

import pytest

from cache_dit_serving.caching.settings import CacheSettings
from cache_dit_serving.measure.search.fewer_steps import fewer_steps
from cache_dit_serving.measure.search.points import cases_of, differing
from cache_dit_serving.measure.search.space import pattern


def test_a_case_is_another_prompt_before_it_is_another_seed() -> None:
    cases = cases_of(["a", "b", "c"], (0, 1), 5)
    assert cases == [("a", 0), ("b", 1), ("c", 0), ("a", 1), ("b", 0)]


def test_the_baseline_has_fewer_steps_than_the_reference_and_no_fewer_than_the_model_takes() -> None:
    assert [point.steps for point in fewer_steps(28, 1)] == [24, 21, 17, 14, 11, 9, 7, 5, 4]
    assert [point.steps for point in fewer_steps(4, 2)] == [3, 2]
    assert fewer_steps(1, 1) == []


@pytest.mark.parametrize("reused", [1, 3, 6])
@pytest.mark.parametrize("steps", [8, 28, 100])
def test_a_pattern_covers_any_number_of_steps(reused: int, steps: int) -> None:
    settings = CacheSettings.model_validate({"Fn_compute_blocks": 1, **pattern(3, reused, steps)})
    mask = settings.mask(steps)
    assert mask is not None
    assert mask[:4] == [1, 1, 1, 0]
    assert settings.mask(100) is not None


def test_what_differs_from_the_defaults_has_the_effect_of_all_settings() -> None:
    for fields in (
        {},
        {"enable_taylorseer": True, "taylorseer_order": 2},
        pattern(2, 3, 28),
        {"cache_type": "DBPrune"},
    ):
        settings = CacheSettings.model_validate({"Fn_compute_blocks": 2, **fields})
        assert CacheSettings.model_validate(differing(settings)).same_effect(settings)
