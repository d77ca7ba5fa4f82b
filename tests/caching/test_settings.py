"""One frozen value for what the cache may do: what contradicts, what it comes to, what goes beyond what."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cache_dit_serving.caching.ceiling import exceeds
from cache_dit_serving.caching.derived import derive
from cache_dit_serving.caching.settings import CacheOptions, CacheSettings
from cache_dit_serving.caching.step_masks import MaskBins
from tests.support.properties import UNTIMED


def settings(**fields: Any) -> CacheSettings:
    return CacheSettings.model_validate(fields)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"enable_dmd": True, "enable_foca": True}, "only one calibrator"),
        ({"taylorseer_order": 2}, "no effect without enable_taylorseer"),
        ({"non_prune_block_ids": [1]}, "no effect without cache_type: DBPrune"),
        ({"cfg_compute_first": True}, "needs cfg_diff_compute_separate: false"),
        ({"steps_computation_mask": [0, 1]}, "must begin with 1"),
        (
            {"cache_type": "DBPrune", "max_accumulated_residual_diff_threshold": 0.1},
            "has no effect with cache_type: DBPrune",
        ),
        ({"cache_type": "DBPrune", "cfg_diff_compute_separate": False}, "does not work with cache_type: DBPrune"),
        ({"cache_type": "DBPrune", "max_dynamic_prune_threshold": 0.01}, "unless it is above"),
        (
            {"cache_type": "DBPrune", "enable_dmd": True, "calibrator_cache_type": "hidden_states"},
            "does not work with DBPrune",
        ),
        ({"enable_dmd": True, "dmd_history": 3}, "greater than or equal to 4"),
        ({"steps_computation_mask": {"compute_bins": [1], "cache_bins": [1, 1]}}, "or one more"),
        ({"steps_computation_mask": {"compute_bins": [0], "cache_bins": [1]}}, "greater than or equal to 1"),
    ],
)
def test_what_contradicts_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        settings(**fields)


def test_settings_with_equal_effects_have_one_name() -> None:
    given_in_full = settings(Fn_compute_blocks=8, max_cached_steps=-1, steps_computation_policy="static")
    assert given_in_full.digest() == settings().digest()
    assert given_in_full.same_effect(settings())
    assert settings(residual_diff_threshold=0.1).digest() != settings().digest()
    assert settings(enable_separate_cfg=True).digest() == settings().digest(), "it follows the request"


@pytest.mark.parametrize(
    ("base", "given", "expected"),
    [
        ({"enable_taylorseer": True, "taylorseer_order": 2}, {"enable_dmd": True}, {"enable_dmd": True}),
        ({"enable_taylorseer": True, "taylorseer_order": 2}, {"enable_taylorseer": False}, {}),
        ({"cache_type": "DBPrune", "non_prune_block_ids": [1]}, {"cache_type": "DBCache"}, {}),
        (
            {"max_warmup_steps": 4},
            {"residual_diff_threshold": 0.3},
            {"max_warmup_steps": 4, "residual_diff_threshold": 0.3},
        ),
        ({"steps_computation_mask": "fast"}, {"steps_computation_mask": None}, {}),
    ],
)
def test_what_is_laid_over_drops_what_it_leaves_without_a_meaning(
    base: dict[str, Any], given: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert settings(**base).overridden(given).same_effect(settings(**expected))


def test_effective_settings_come_to_the_same_over_any_others() -> None:
    others = [
        settings(enable_taylorseer=True, taylorseer_order=2),
        settings(cache_type="DBPrune", non_prune_block_ids=[3]),
    ]
    others.append(settings(steps_computation_mask="ultra", steps_computation_policy="static", max_cached_steps=3))
    for wanted in [*others, settings(enable_dmd=True)]:
        for base in others:
            options = CacheOptions.model_validate(wanted.effective())
            assert base.overridden(options.given).digest() == wanted.digest()


@pytest.mark.parametrize("policy", ["slow", "medium", "fast", "ultra"])
def test_a_policy_fits_every_number_of_steps_or_is_refused_clearly(policy: str) -> None:
    chosen = settings(steps_computation_mask=policy)
    for steps in range(1, 120):
        if steps < 8 and steps not in (4, 6):
            with pytest.raises(ValueError, match="ask for 4, 6, or 8 and more"):
                chosen.mask(steps)
            continue
        mask = chosen.mask(steps)
        assert mask is not None
        assert len(mask) == steps
        assert mask[0] == mask[-1] == 1


def test_bins_are_cut_to_the_steps_and_must_cover_them() -> None:
    bins = MaskBins(compute_bins=(3, 1, 1), cache_bins=(2, 2))
    chosen = settings(steps_computation_mask=bins)
    assert chosen.mask(9) == [1, 1, 1, 0, 0, 1, 0, 0, 1]
    assert chosen.mask(5) == [1, 1, 1, 0, 0]
    with pytest.raises(ValueError, match="cover 9 steps, not 10"):
        chosen.mask(10)


@pytest.mark.parametrize(
    ("fields", "steps", "code"),
    [
        ({"max_warmup_steps": 8}, 8, "within_warmup"),
        ({"max_warmup_steps": 8}, 9, None),
        ({"max_warmup_steps": 8, "warmup_interval": 2}, 4, None),
        ({"max_warmup_steps": 0}, 1, "within_warmup"),
        ({"max_cached_steps": 0}, 20, "none_allowed"),
        ({"residual_diff_threshold": 0}, 20, "none_allowed"),
        ({"steps_computation_mask": [1, 1, 1]}, 3, "mask_computes_all"),
        ({"steps_computation_mask": [1, 0, 1]}, 3, None),
        (
            {"force_refresh_step_hint": 2, "force_refresh_step_policy": "repeat", "max_warmup_steps": 2},
            20,
            "within_warmup",
        ),
        ({"force_refresh_step_hint": 3, "force_refresh_step_policy": "repeat", "max_warmup_steps": 2}, 20, None),
        ({"steps_computation_mask": [1, 0, 1], "max_cached_steps": 0}, 3, "none_allowed"),
        ({"steps_computation_mask": [1, 0], "steps_computation_policy": "static", "max_cached_steps": 0}, 2, None),
    ],
)
def test_what_cannot_engage_is_known_beforehand(fields: dict[str, Any], steps: int, code: str | None) -> None:
    reason = settings(**fields).cannot_engage(steps, passes=1)
    assert (reason and reason[0]) == code


@pytest.mark.parametrize(
    ("fields", "setting"),
    [
        ({}, None),
        ({"residual_diff_threshold": 0.1}, "residual_diff_threshold"),
        ({"residual_diff_threshold": 0.05, "max_warmup_steps": 9, "Fn_compute_blocks": 9}, None),
        ({"max_warmup_steps": 7}, "max_warmup_steps"),
        ({"warmup_interval": 2}, "warmup_interval"),
        ({"max_continuous_cached_steps": -1}, "max_continuous_cached_steps"),
        ({"max_continuous_cached_steps": 2}, None),
        ({"Fn_compute_blocks": 7}, "Fn_compute_blocks"),
        ({"cache_type": "DBPrune"}, "cache_type"),
        ({"steps_computation_mask": "fast"}, "steps_computation_mask"),
        ({"steps_computation_mask": [1] * 12 + [0] * 8}, None),
        (
            {"steps_computation_mask": [1] * 12 + [0] * 8, "steps_computation_policy": "static"},
            "steps_computation_policy",
        ),
        ({"force_refresh_step_hint": 9, "max_cached_steps": 4}, None),
        ({"enable_taylorseer": True}, None),
        ({"cfg_diff_compute_separate": False}, "cfg_diff_compute_separate"),
    ],
)
def test_a_ceiling_holds_for_every_setting(fields: dict[str, Any], setting: str | None) -> None:
    ceiling = settings(max_continuous_cached_steps=3)
    assert exceeds(ceiling.overridden(fields), ceiling, 20, passes=1) == setting


balanced = st.builds(
    CacheSettings,
    Fn_compute_blocks=st.integers(1, 12),
    residual_diff_threshold=st.floats(0.01, 1.5),
    max_warmup_steps=st.integers(0, 16),
    max_continuous_cached_steps=st.integers(-1, 8),
    cache_type=st.sampled_from(["DBCache", "DBPrune"]),
)


@UNTIMED
@given(balanced, st.integers(1, 60))
def test_derived_speeds_approximate_more_and_more(base: CacheSettings, steps: int) -> None:
    rungs = derive(base)
    assert rungs["balanced"] == base
    assert exceeds(rungs["high"], rungs["balanced"], steps, passes=1) is None
    assert exceeds(rungs["balanced"], rungs["fast"], steps, passes=1) is None


def test_reach_counts_anew_after_each_refresh() -> None:
    refreshed = settings(max_warmup_steps=2, residual_diff_threshold=0.3, force_refresh_step_hint=4)
    assert refreshed.max_difference_by_step(9, passes=1) == [0, 0, 0.3, 0.3, 0, 0, 0.3, 0.3, 0.3]
    assert refreshed.max_difference_by_step(5, passes=2) == [0, 0, 0, 0, 0.3], "two passes a step: after 2 steps"
    repeated = refreshed.overridden({"force_refresh_step_policy": "repeat"})
    assert repeated.max_difference_by_step(9, passes=1) == [0, 0, 0.3, 0.3, 0, 0, 0.3, 0.3, 0]
