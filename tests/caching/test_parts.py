"""Settings for one transformer or one block list: what holds where, what is refused, what a ceiling makes of them."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from cache_dit_serving.caching.ceiling import exceeds
from cache_dit_serving.caching.checks import CacheSupport, check_model, overridden
from cache_dit_serving.caching.derived import derive
from cache_dit_serving.caching.settings import CacheOptions, CacheSettings
from cache_dit_serving.errors import InvalidRequest

SUPPORT = CacheSupport({"transformer.blocks": 4, "transformer.singles": 12, "transformer_2.blocks": 6}, {})


def settings(**fields: Any) -> CacheSettings:
    return CacheSettings.model_validate({"Fn_compute_blocks": 1, "residual_diff_threshold": 0.1, **fields})


PARTED = settings(
    per_transformer={"transformer_2": {"max_warmup_steps": 2, "residual_diff_threshold": 0.2}},
    per_block_list={"blocks": {"residual_diff_threshold": 0.3}},
)


def asked(**fields: Any) -> CacheOptions:
    return CacheOptions.model_validate(fields)


def test_a_block_lists_word_goes_over_its_transformers_and_that_over_the_rest() -> None:
    def of(*part: str) -> tuple[int, float]:
        own = PARTED.of(*part)
        return own.max_warmup_steps, own.residual_diff_threshold

    assert of("transformer", "singles") == (8, 0.1)
    assert of("transformer", "blocks") == (8, 0.3)
    assert of("transformer_2", "singles") == (2, 0.2)
    assert of("transformer_2", "blocks") == (2, 0.3)


def test_settings_with_parts_are_given_back_as_they_came_and_can_be_looked_up() -> None:
    assert CacheSettings.model_validate(PARTED.effective()) == PARTED
    assert hash(CacheSettings.model_validate(PARTED.effective())) == hash(PARTED)
    assert PARTED.effective()["per_block_list"] == {"blocks": {"residual_diff_threshold": 0.3}}
    assert PARTED.digest() != settings().digest()
    assert "per_transformer" not in settings().effective()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"per_transformer": {"transformer": {}}}, "per_transformer.transformer: it has no effect"),
        (
            {"per_block_list": {"blocks": {"max_warmup_steps": 1}}, "steps_computation_mask": "fast"},
            "per_block_list.blocks: max_warmup_steps has no effect beside the other settings",
        ),
        ({"per_block_list": {"blocks": {"cache_type": "DBPrune"}}}, "Extra inputs"),
        ({"per_block_list": {"blocks": {"Fn_compute_blocks": 0}}}, "greater than or equal to 1"),
        ({"per_block_list": {str(index): {"max_cached_steps": 1} for index in range(17)}}, "at most 16"),
    ],
)
def test_a_part_without_effect_or_with_a_wrong_setting_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        settings(**fields)


def test_a_field_that_a_request_gives_holds_for_every_part_unless_it_gives_the_parts() -> None:
    assert overridden(PARTED, asked(residual_diff_threshold=0.05)) == settings(
        residual_diff_threshold=0.05, per_transformer={"transformer_2": {"max_warmup_steps": 2}}
    )
    one = overridden(PARTED, asked(residual_diff_threshold=0.05, per_block_list={"singles": {"max_cached_steps": 2}}))
    assert one.of("transformer_2", "blocks").residual_diff_threshold == 0.05
    assert one.of("transformer", "singles").max_cached_steps == 2
    assert overridden(PARTED, asked(per_block_list={}, per_transformer={})) == settings()
    masked = overridden(PARTED, asked(steps_computation_mask="fast"))
    assert masked.per_transformer["transformer_2"].given == {"residual_diff_threshold": 0.2}


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"per_transformer": {"decoder": {"max_cached_steps": 1}}}, "cache.per_transformer", "transformer_2"),
        ({"per_block_list": {"block": {"max_cached_steps": 1}}}, "cache.per_block_list", "there is: blocks, singles"),
        (
            {"per_transformer": {"transformer_2": {"Fn_compute_blocks": 7}}},
            "cache.Fn_compute_blocks",
            "more than the 6 blocks of transformer_2.blocks",
        ),
        (
            {
                "per_block_list": {"singles": {"Fn_compute_blocks": 12}, "blocks": {"Fn_compute_blocks": 4}},
                "per_transformer": {"transformer_2": {"Bn_compute_blocks": 2}},
            },
            "cache.Fn_compute_blocks",
            "compute every block",
        ),
    ],
)
def test_parts_must_be_the_models(fields: dict[str, Any], param: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as refused:
        check_model(settings(**fields), SUPPORT)
    assert refused.value.param == param


def test_a_part_may_hold_more_blocks_back_than_the_rest_could() -> None:
    check_model(settings(per_block_list={"singles": {"Fn_compute_blocks": 8, "Bn_compute_blocks": 3}}), SUPPORT)


def test_a_ceiling_holds_in_every_part() -> None:
    ceiling = settings(per_block_list={"singles": {"residual_diff_threshold": 0.05}})
    assert exceeds(ceiling, ceiling, 20, passes=1) is None
    assert exceeds(settings(residual_diff_threshold=0.05), ceiling, 20, passes=1) is None
    assert exceeds(settings(), ceiling, 20, passes=1) == "residual_diff_threshold"
    assert exceeds(settings(per_transformer={"a": {"max_warmup_steps": 1}}), settings(), 20, passes=1)
    assert exceeds(settings(per_transformer={"a": {"max_warmup_steps": 9}}), settings(), 20, passes=1) is None


def test_the_part_that_goes_furthest_says_whether_a_step_can_be_reused() -> None:
    late = settings(max_warmup_steps=8, per_transformer={"transformer_2": {"max_warmup_steps": 2}})
    assert late.cannot_engage(6, passes=1) is None
    assert late.max_difference_by_step(4, passes=1) == [0.0, 0.0, 0.1, 0.1]
    assert (reason := settings(per_block_list={"a": {"max_warmup_steps": 9}}).cannot_engage(6, passes=1)) is not None
    assert reason.code == "within_warmup"


def test_derived_speeds_scale_the_parts_as_the_rest() -> None:
    speeds = derive(PARTED)
    assert speeds["high"].of("transformer", "blocks").residual_diff_threshold == 0.15
    assert speeds["fast"].of("transformer", "blocks").residual_diff_threshold == 0.6
    assert speeds["fast"].of("transformer_2", "singles").max_warmup_steps == 1
