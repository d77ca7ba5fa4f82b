"""Speeds of a model and who may ask for which: the ladder, the ceiling, overrides."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from cache_dit_serving.caching.checks import CacheSupport
from cache_dit_serving.caching.settings import CacheOptions, CacheSettings
from cache_dit_serving.caching.speeds import CacheChoice, SpeedLadder
from cache_dit_serving.config.catalog import config_names
from cache_dit_serving.config.reading import load_settings
from cache_dit_serving.config.settings import Settings
from cache_dit_serving.errors import InvalidRequest, LoadError

SUPPORT = CacheSupport({"T.blocks": 12, "T.single_blocks": 20}, {})
BASE = {"Fn_compute_blocks": 1, "residual_diff_threshold": 0.2, "max_warmup_steps": 4}
NO_PRUNE = CacheSupport(SUPPORT.block_lists, {"DBPrune": "DBPrune fails here"})
REFUSED = CacheSupport({}, dict.fromkeys(("DBCache", "DBPrune"), "cache-dit does not support X"))


def ladder(support: CacheSupport = SUPPORT, steps: int = 28, **sections: Any) -> SpeedLadder:
    settings = Settings.model_validate({"cache": BASE} | sections)
    return SpeedLadder(settings.cache, settings.speeds, support, steps)


def choose(speeds: SpeedLadder, speed: Any = None, *, steps: int = 28, passes: int = 1, **cache: Any) -> CacheChoice:
    options = CacheOptions.model_validate(cache) if cache else None
    return speeds.choose(speed, options, num_inference_steps=steps, passes=passes)


def test_a_request_that_asks_for_nothing_gets_the_section_cache() -> None:
    choice = choose(ladder())
    assert choice.settings == CacheSettings.model_validate(BASE)
    assert choice.speed == "balanced"
    assert choose(ladder(cache=None)) == CacheChoice(None, "lossless")


def test_a_configured_default_speed_takes_the_place_of_the_section_cache() -> None:
    speeds = ladder(speeds={"default": "high"})
    assert choose(speeds).speed == "high"
    assert choose(ladder(speeds={"default": "lossless"})).settings is None


def test_a_speed_has_steps_of_its_own_for_requests_that_name_none() -> None:
    speeds = ladder(speeds={"fast": {"num_inference_steps": 8}, "balanced": {"num_inference_steps": 20}})
    assert [speeds.steps(name, None) for name in ("lossless", "high", "balanced", "fast")] == [None, None, 20, 8]
    assert speeds.steps("fast", CacheOptions(max_cached_steps=5)) == 8
    # Without a speed: that of the default one, unless the request brings settings of its own.
    assert speeds.steps(None, None) == 20
    assert speeds.steps(None, CacheOptions(max_cached_steps=5)) is None
    assert ladder(speeds={"default": "lossless", "fast": {"num_inference_steps": 8}}).steps(None, None) is None


def twins(**speeds: Any) -> SpeedLadder:
    """Speeds of which `balanced` and `fast` have the same settings and differ by their steps."""
    return ladder(speeds={"balanced": {}, "fast": {"cache": BASE, "num_inference_steps": 14}} | speeds)


def test_speeds_with_the_same_settings_are_told_apart_by_their_steps() -> None:
    speeds = twins()
    assert [choose(speeds, steps=steps, residual_diff_threshold=0.2).speed for steps in (28, 14, 20)] == [
        "balanced",
        "fast",
        "balanced",
    ]
    assert [choose(speeds, name, steps=14).speed for name in ("balanced", "fast")] == ["balanced", "fast"]
    both = twins(balanced={"num_inference_steps": 21})
    assert [choose(both, steps=steps, residual_diff_threshold=0.2).speed for steps in (21, 14, 20)] == [
        "balanced",
        "fast",
        "custom",
    ]


def test_a_default_speed_keeps_its_steps_where_another_has_the_same_settings() -> None:
    for default in ("balanced", "fast"):
        speeds = twins(default=default)
        steps = speeds.steps(None, None)
        assert (speeds.default_speed, steps) == (default, None if default == "balanced" else 14)
        assert choose(speeds, steps=steps or 28).speed == default
        assert choose(speeds, steps=9).speed == default, "steps of a request lie over the default speed as over others"
    assert twins().default_speed == "balanced", "which the section `cache` is"
    assert twins(ceiling="high", high={"cache": BASE}).default_speed == "high"
    own = {"cache": BASE | {"residual_diff_threshold": 0.1}}
    assert twins(balanced=own).default_speed == "fast"
    assert ladder(speeds={"balanced": own}).default_speed == "custom"


def test_steps_lead_to_no_settings_above_the_ceiling() -> None:
    only = {"cache": BASE | {"residual_diff_threshold": 0.1}}
    speeds = ladder(
        cache=None, speeds={"ceiling": "high", "high": only, "fast": {"cache": BASE, "num_inference_steps": 14}}
    )
    for steps in (14, 28):
        with pytest.raises(InvalidRequest, match="goes beyond this server's ceiling"):
            choose(speeds, steps=steps, residual_diff_threshold=0.2)


def test_the_mask_of_a_speed_fits_the_steps_of_the_speed() -> None:
    cache = {"Fn_compute_blocks": 1, "steps_computation_mask": [1, 1, 0, 1, 0, 1, 1, 0]}
    with pytest.raises(LoadError, match=r"speeds\.fast\.cache"):
        ladder(speeds={"fast": {"cache": cache}})
    ladder(speeds={"fast": {"cache": cache, "num_inference_steps": 8}})


def test_overrides_lie_over_the_speed_or_the_default() -> None:
    speeds = ladder()
    over_fast = choose(speeds, "fast", max_cached_steps=5).settings
    assert over_fast is not None
    assert (over_fast.residual_diff_threshold, over_fast.max_cached_steps) == (0.4, 5)
    over_default = choose(speeds, Bn_compute_blocks=2)
    assert over_default.settings == CacheSettings.model_validate(BASE | {"Bn_compute_blocks": 2})
    assert over_default.speed == "custom"
    over_balanced = choose(ladder(cache=None), residual_diff_threshold=0.3).settings
    assert over_balanced is not None
    assert (over_balanced.Fn_compute_blocks, over_balanced.max_warmup_steps) == (1, 8)


def test_settings_that_are_a_speeds_are_called_by_its_name() -> None:
    assert choose(ladder(), residual_diff_threshold=0.2).speed == "balanced"
    assert choose(ladder(), residual_diff_threshold=0.1, max_continuous_cached_steps=2).speed == "high"


def test_a_speeds_own_settings_take_the_place_of_derived_ones() -> None:
    own = BASE | {"residual_diff_threshold": 0.33}
    speeds = ladder(speeds={"fast": {"cache": own}})
    assert choose(speeds, "fast").settings == CacheSettings.model_validate(own)
    assert choose(speeds, "high").settings == choose(ladder(), "high").settings


def test_few_step_models_get_a_warm_up_that_leaves_steps_to_reuse() -> None:
    settings = choose(ladder(cache=None, steps=9), "balanced", steps=9).settings
    assert settings is not None
    assert settings.cannot_engage(9, passes=1) is None


def test_figures_hold_only_for_the_settings_that_were_measured() -> None:
    figures = {"num_inference_steps": 28, "speedup": 2.0, "psnr_db": 40.0, "psnr_db_worst_decile": 35.0, "ssim": 0.99}
    figures |= {"ssim_worst_decile": 0.98, "cached_steps": 18.0}
    digest = CacheSettings.model_validate(BASE).digest()
    measured: dict[str, Any] = {"balanced": {"measured": {**figures, "settings_hash": digest}}}
    assert ladder(speeds=measured).rungs["balanced"].measured is not None
    changed = BASE | {"residual_diff_threshold": 0.21}
    assert ladder(cache=changed, speeds=measured).rungs["balanced"].measured is None
    assert ladder(speeds=measured, steps=20).rungs["balanced"].measured is None, "the figures are of 28 steps"
    measured["balanced"]["num_inference_steps"] = 28
    assert ladder(speeds=measured, steps=20).rungs["balanced"].measured is not None
    measured["balanced"]["num_inference_steps"] = 14
    assert ladder(speeds=measured).rungs["balanced"].measured is None


@pytest.mark.parametrize(
    ("ceiling", "speed", "cache", "param"),
    [
        ("high", "balanced", {}, "speed"),
        ("high", "high", {"residual_diff_threshold": 0.11}, "cache.residual_diff_threshold"),
        (
            "high",
            None,
            {"residual_diff_threshold": 0.1, "max_continuous_cached_steps": -1},
            "cache.max_continuous_cached_steps",
        ),
        ("lossless", None, {"enabled": True}, "cache.enabled"),
        (
            "balanced",
            None,
            {"steps_computation_mask": "ultra", "steps_computation_policy": "static"},
            "cache.steps_computation_policy",
        ),
        ("balanced", None, {"cache_type": "DBPrune"}, "cache.cache_type"),
    ],
)
def test_what_is_above_the_ceiling_is_refused_with_what_is_allowed(
    ceiling: str, speed: Any, cache: dict[str, Any], param: str
) -> None:
    speeds = ladder(speeds={"ceiling": ceiling, "default": "lossless"})
    with pytest.raises(InvalidRequest, match="it takes: lossless") as raised:
        choose(speeds, speed, **cache)
    assert raised.value.param == param
    assert raised.value.code == "above_ceiling"


def test_what_is_within_the_ceiling_is_not() -> None:
    speeds = ladder(speeds={"ceiling": "balanced"})
    assert choose(speeds, "balanced").speed == "balanced"
    assert choose(speeds, "high", Bn_compute_blocks=3).settings is not None
    assert choose(speeds, residual_diff_threshold=0.2, max_warmup_steps=9).settings is not None


DYNAMIC = {"cache_type": "DBPrune", "enable_dynamic_prune_threshold": True, "max_dynamic_prune_threshold": 0.8}


@pytest.mark.parametrize(
    ("ceiling", "cache", "param"),
    [
        (
            {"force_refresh_step_hint": 7, "force_refresh_step_policy": "repeat"},
            {"force_refresh_step_hint": None},
            "hint",
        ),
        (
            {"force_refresh_step_hint": 7, "force_refresh_step_policy": "repeat"},
            {"force_refresh_step_hint": 20},
            "hint",
        ),
        (
            {"force_refresh_step_hint": 7, "force_refresh_step_policy": "repeat"},
            {"force_refresh_step_policy": "once"},
            "force_refresh_step_policy",
        ),
        (
            {
                "steps_computation_mask": {"compute_bins": [1, 27], "cache_bins": [3]},
                "steps_computation_policy": "static",
            },
            {"force_refresh_step_hint": 4, "force_refresh_step_policy": "repeat"},
            "hint",
        ),
        ({"force_refresh_step_hint": 14, "max_cached_steps": 2}, {"max_cached_steps": -1}, "max_cached_steps"),
        ({"force_refresh_step_hint": 500, "max_cached_steps": 2}, {"max_cached_steps": 9}, "max_cached_steps"),
        (
            {"force_refresh_step_hint": 14, "max_accumulated_residual_diff_threshold": 0.3},
            {"max_accumulated_residual_diff_threshold": 100.0},
            "max_accumulated_residual_diff_threshold",
        ),
        ({"max_cached_steps": 2}, {"force_refresh_step_hint": 6}, "hint"),
        (DYNAMIC, {"dynamic_prune_threshold_relax_ratio": 3.0}, "dynamic_prune_threshold_relax_ratio"),
        (DYNAMIC, {"residual_diff_threshold": 0.79}, "residual_diff_threshold"),
        (
            DYNAMIC,
            {
                "residual_diff_threshold": 0.8,
                "enable_dynamic_prune_threshold": False,
                "max_dynamic_prune_threshold": None,
            },
            "residual_diff_threshold",
        ),
        ({"cache_type": "DBPrune"}, {"enable_dynamic_prune_threshold": True}, "residual_diff_threshold"),
        (DYNAMIC | {"enable_taylorseer": True}, {"force_reduce_calibrator_vram": True}, "force_reduce_calibrator_vram"),
        ({"enable_taylorseer": True}, {"enable_foca": True}, "enable_foca"),
        ({"enable_taylorseer": True}, {"enable_taylorseer": False}, "enable_taylorseer"),
        ({"enable_taylorseer": True}, {"taylorseer_order": 4}, "enable_taylorseer"),
    ],
)
def test_no_setting_leads_around_the_ceiling(ceiling: dict[str, Any], cache: dict[str, Any], param: str) -> None:
    only = {"cache": BASE | ceiling}
    speeds = ladder(cache=None, speeds={"ceiling": "fast", "high": only, "balanced": only, "fast": only})
    assert choose(speeds, "fast").settings is not None
    with pytest.raises(InvalidRequest) as raised:
        choose(speeds, "fast", **cache)
    assert raised.value.code == "above_ceiling"
    assert param in (raised.value.param or "")


def test_settings_of_a_forbidden_speed_are_refused_however_they_are_asked_for() -> None:
    speeds = ladder(cache=None, speeds={"ceiling": "high"})
    allowed = choose(speeds, enabled=True)
    assert allowed.speed == "high"
    forbidden = ladder(cache=None).rungs["balanced"].settings
    assert forbidden is not None
    with pytest.raises(InvalidRequest, match="the settings of balanced"):
        choose(speeds, **forbidden.effective())


def test_a_ceiling_whose_mask_is_for_other_steps_still_answers() -> None:
    masked = {"Fn_compute_blocks": 1, "steps_computation_mask": {"compute_bins": [1, 27], "cache_bins": [3]}}
    speeds = ladder(speeds={"ceiling": "fast", "default": "high", "fast": {"cache": masked}})
    assert choose(speeds, "high", steps=40).speed == "high"
    with pytest.raises(InvalidRequest) as raised:
        choose(speeds, steps=40, residual_diff_threshold=0.01)
    assert raised.value.code == "above_ceiling"


def test_speeds_with_equal_settings_keep_the_name_that_was_asked_for() -> None:
    speeds = ladder(speeds={"high": {"cache": BASE}})
    assert [choose(speeds, speed).speed for speed in ("high", "balanced")] == ["high", "balanced"]
    assert choose(speeds, "balanced", strict=True).speed == "balanced"


def test_speeds_around_a_mask_that_reuses_without_asking() -> None:
    static = {"Fn_compute_blocks": 1, "steps_computation_mask": "medium", "steps_computation_policy": "static"}
    speeds = ladder(cache=static)
    high, fast = speeds.rungs["high"].settings, speeds.rungs["fast"].settings
    assert high is not None
    assert fast is not None
    assert high.steps_computation_policy == "dynamic"
    assert fast.steps_computation_mask == "fast"
    bins = {**static, "steps_computation_mask": {"compute_bins": [4, 30], "cache_bins": [3]}}
    assert ladder(cache=bins).allowed == ["lossless", "high", "balanced"]
    with pytest.raises(LoadError, match="give its cache"):
        ladder(cache=bins, speeds={"default": "fast"})


def test_effective_settings_are_accepted_again_whatever_the_request() -> None:
    base = BASE | {"cfg_diff_compute_separate": False}
    speeds = ladder(cache=base)
    effective = CacheSettings.model_validate(base).effective()
    assert choose(speeds, **effective).settings == choose(speeds).settings


def test_a_default_above_the_ceiling_fails_the_load() -> None:
    with pytest.raises(LoadError, match=r"speeds\.ceiling"):
        ladder(speeds={"ceiling": "high"})


@pytest.mark.parametrize(
    ("speed", "cache", "words", "param"),
    [
        (
            "lossless",
            {"residual_diff_threshold": 0.1},
            "no effect with speed lossless",
            "cache.residual_diff_threshold",
        ),
        ("lossless", {"strict": True}, "no effect with speed lossless", "cache.strict"),
        ("fast", {"enabled": False}, "contradicts speed fast", "cache.enabled"),
        (None, {"enabled": False, "strict": True}, "no effect with cache.enabled false", "cache.strict"),
        (None, {"steps_computation_policy": "static"}, "no effect beside", "cache.steps_computation_policy"),
        (None, {"enable_encoder_foca": True}, "no effect without enable_foca", "cache.enable_encoder_foca"),
        (None, {"Fn_compute_blocks": 13}, "more than the 12 blocks", "cache.Fn_compute_blocks"),
        (None, {"Bn_compute_blocks": 12}, "more than the 12 blocks", "cache.Bn_compute_blocks"),
        (
            None,
            {"force_refresh_step_hint": 28},
            "no effect on a request of 28 forward passes",
            "cache.force_refresh_step_hint",
        ),
        (None, {"max_warmup_steps": 5, "steps_computation_mask": "fast"}, "no effect beside", "cache.max_warmup_steps"),
        (
            None,
            {"residual_diff_threshold": 1.0, "max_accumulated_residual_diff_threshold": 0.2},
            "no effect beside",
            "cache.max_accumulated_residual_diff_threshold",
        ),
        (
            None,
            {"cache_type": "DBPrune", "force_reduce_calibrator_vram": True},
            "no effect",
            "cache.force_reduce_calibrator_vram",
        ),
        (
            None,
            {"cache_type": "DBPrune", "non_prune_block_ids": [20]},
            "beyond the 20 blocks",
            "cache.non_prune_block_ids",
        ),
        (None, {"steps_computation_mask": [1, 0]}, "num_inference_steps 2", "cache.steps_computation_mask"),
        (None, {"enable_separate_cfg": True}, "one forward pass a step", "cache.enable_separate_cfg"),
        (None, {"cfg_diff_compute_separate": False}, "one forward pass a step", "cache.cfg_diff_compute_separate"),
    ],
)
def test_what_would_have_no_effect_or_cannot_run_is_refused(
    speed: Any, cache: dict[str, Any], words: str, param: str
) -> None:
    with pytest.raises(InvalidRequest, match=words) as raised:
        choose(ladder(), speed, **cache)
    assert raised.value.param == param


def test_a_refresh_must_not_part_the_passes_of_a_step() -> None:
    assert choose(ladder(), force_refresh_step_hint=7).settings is not None
    assert choose(ladder(), force_refresh_step_hint=8, passes=2).settings is not None
    with pytest.raises(InvalidRequest, match="make it even"):
        choose(ladder(), force_refresh_step_hint=7, passes=2)


def test_without_support_only_lossless_is_offered_and_the_reason_is_said() -> None:
    speeds = ladder(REFUSED)
    assert speeds.allowed == ["lossless"]
    assert choose(speeds).no_cache_reason == ("unsupported", "cache-dit does not support X")
    assert choose(speeds, "lossless").no_cache_reason == ("off", "off")
    for speed, cache in (("fast", {}), (None, {"enabled": True})):
        with pytest.raises(InvalidRequest, match="does not support X"):
            choose(speeds, speed, **cache)


def test_a_type_that_does_not_run_is_refused_alone() -> None:
    speeds = ladder(NO_PRUNE)
    assert choose(speeds).settings is not None
    with pytest.raises(InvalidRequest, match="DBPrune fails here"):
        choose(speeds, cache_type="DBPrune")


def test_settings_that_leave_no_block_to_reuse_are_refused() -> None:
    single = CacheSupport({"T.blocks": 12}, {})
    whole: list[dict[str, Any]] = [{"Fn_compute_blocks": 12}, {"Fn_compute_blocks": 4, "Bn_compute_blocks": 8}]
    for cache in whole:
        with pytest.raises(InvalidRequest, match="leaves none to reuse"):
            choose(ladder(single), **cache)
    with pytest.raises(InvalidRequest, match="fewer non_prune_block_ids"):
        choose(ladder(single), cache_type="DBPrune", non_prune_block_ids=list(range(1, 12)))
    assert choose(ladder(), Fn_compute_blocks=12).settings is not None, "the other list has 20"


def test_settings_that_no_block_list_can_hold_fail_the_load() -> None:
    with pytest.raises(LoadError, match=r"cache: Fn_compute_blocks 13 .* 12 blocks of T\.blocks"):
        ladder(cache=BASE | {"Fn_compute_blocks": 13})
    with pytest.raises(LoadError, match=r"speeds\.fast\.cache"):
        ladder(speeds={"fast": {"cache": {"Fn_compute_blocks": 13}}})


def test_an_empty_cache_object_asks_for_nothing() -> None:
    speeds = ladder(REFUSED)
    empty = speeds.choose(None, CacheOptions(), num_inference_steps=28, passes=1)
    assert empty == choose(speeds)
    assert empty.no_cache_reason.code == "unsupported"


def test_a_default_of_a_type_that_does_not_run_leaves_the_other_type_to_requests() -> None:
    speeds = ladder(NO_PRUNE, cache=BASE | {"cache_type": "DBPrune"}, speeds={"fast": {"cache": BASE}})
    assert choose(speeds).no_cache_reason == ("unsupported", "DBPrune fails here")
    assert speeds.allowed == ["lossless", "fast"]
    assert choose(speeds, "fast").settings == CacheSettings.model_validate(BASE)
    assert choose(speeds, cache_type="DBCache").settings is not None
    with pytest.raises(InvalidRequest, match="DBPrune fails here"):
        choose(speeds, "high")


def test_a_fact_of_the_family_is_refused_in_a_speed() -> None:
    with pytest.raises(ValidationError, match="a fact of the family"):
        ladder(speeds={"fast": {"cache": BASE | {"enable_separate_cfg": True}}})


@pytest.mark.parametrize("name", config_names())
def test_every_shipped_configuration_has_its_speeds(name: str) -> None:
    settings = load_settings({"CACHE_DIT_SERVING_CONFIG": name})
    # As deep as the models of the configurations that hold back the most blocks.
    cache = settings.cache or CacheSettings()
    lists = [f"{part}.{name}" for part in cache.per_transformer or ["_"] for name in cache.per_block_list or ["_"]]
    support = CacheSupport(dict.fromkeys(lists, 60), {})
    speeds = SpeedLadder(settings.cache, settings.speeds, support, settings.defaults.num_inference_steps or 28)
    assert speeds.allowed == ["lossless", "high", "balanced", "fast"]
    assert speeds.default == settings.cache
