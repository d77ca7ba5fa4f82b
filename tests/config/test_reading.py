"""The settings tree: names, overrides, and errors that say what to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from cache_dit_serving.config.catalog import config_names
from cache_dit_serving.config.reading import CONFIG_VARIABLE, load_settings
from cache_dit_serving.errors import ConfigError


def write(path: Path, text: str) -> dict[str, str]:
    path.write_text(text)
    return {CONFIG_VARIABLE: str(path)}


def test_embedded_is_the_default() -> None:
    settings = load_settings({})
    assert settings.model.path == "embedded"
    assert settings.defaults.width == 96
    assert settings.cache is not None


def test_another_model_takes_nothing_from_the_embedded_ones_configuration() -> None:
    settings = load_settings({"CACHE_DIT_SERVING__MODEL__PATH": "/some/model"})
    generic = load_settings({CONFIG_VARIABLE: "generic"})
    assert settings.model.path == "/some/model"
    assert settings == generic.model_copy(update={"model": settings.model})
    assert settings.model.dtype == "bfloat16"
    assert load_settings({"CACHE_DIT_SERVING__MODEL__PATH": "embedded"}) == load_settings({})
    named = {CONFIG_VARIABLE: "embedded", "CACHE_DIT_SERVING__MODEL__PATH": "/some/model"}
    assert load_settings(named).limits.sizes == (80, 96, 112)


@pytest.mark.parametrize("name", config_names())
def test_every_shipped_configuration_is_valid(name: str) -> None:
    load_settings({CONFIG_VARIABLE: name})


def test_a_leaf_is_overridden_from_the_environment() -> None:
    settings = load_settings(
        {
            "CACHE_DIT_SERVING__MODEL__PATH": "/models/x",
            "CACHE_DIT_SERVING__CACHE__FN_COMPUTE_BLOCKS": "3",
            "CACHE_DIT_SERVING__LIMITS__SIZES": "[64, 128]",
            "CACHE_DIT_SERVING__DEFAULTS__WIDTH": "null",
        }
    )
    assert settings.model.path == "/models/x"
    assert settings.cache is not None
    assert settings.cache.Fn_compute_blocks == 3
    assert settings.limits.sizes == (64, 128)
    assert settings.defaults.width is None


def test_the_cache_can_be_turned_off_from_the_environment() -> None:
    assert load_settings({"CACHE_DIT_SERVING__CACHE": "null"}).cache is None


def test_a_cache_dit_file_pastes_in(tmp_path: Path) -> None:
    environ = write(
        tmp_path / "c.yaml",
        "cache_config: {cache_type: DBPrune, max_warmup_steps: 4, enable_taylorseer: true, taylorseer_order: 2}",
    )
    cache = load_settings(environ).cache
    assert cache is not None
    assert (cache.cache_type, cache.max_warmup_steps, cache.taylorseer_order) == ("DBPrune", 4, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {ip_adapter: x}", "unknown key 'model.ip_adapter'; IP-Adapter is not supported"),
        ("modle: {path: x}", "unknown key 'modle'; did you mean 'model'?"),
        ("cache: {Fn_compute_block: 1}", "unknown key 'cache.Fn_compute_block'; did you mean 'Fn_compute_blocks'?"),
        ("cache: {residual_diff_threshold: high}", "'cache.residual_diff_threshold'"),
        ("cache: {residual_diff_threshold: .nan}", "'cache.residual_diff_threshold'"),
        ("cache: {cache_type: DBCash}", "'cache.cache_type'"),
        ("cache: {taylorseer_order: 2}", "no effect without enable_taylorseer"),
        ("cache: {enable_taylorseer: true, enable_dmd: true}", "only one calibrator"),
        ("cache: {non_prune_block_ids: [0]}", "no effect without cache_type: DBPrune"),
        ("limits: {max_queue: 0}", "'limits.max_queue'"),
        ("limits: {sizes: []}", "'limits.sizes'"),
        ("[1, 2]", "must hold a mapping"),
        ("limits: {max_queue: 3, max_side: 64, max_queue: 4}", "the key 'max_queue' stands twice"),
        ("server: {warm_up: false}\nspeeds: {warm_up: true}", "speeds.warm_up has no effect"),
        ("model: {path: ", "cannot be read as YAML"),
    ],
)
def test_a_mistake_is_named_with_its_remedy(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_settings(write(tmp_path / "c.yaml", text))
    assert message in str(raised.value)


def test_a_cache_dit_file_can_be_overridden(tmp_path: Path) -> None:
    environ = write(tmp_path / "c.yaml", "cache_config: {max_warmup_steps: 4}")
    cache = load_settings(environ | {"CACHE_DIT_SERVING__CACHE__FN_COMPUTE_BLOCKS": "2"}).cache
    assert cache is not None
    assert (cache.max_warmup_steps, cache.Fn_compute_blocks) == (4, 2)


def test_a_pipeline_argument_from_the_environment_keeps_its_type() -> None:
    environ = {"CACHE_DIT_SERVING__DEFAULTS__PIPELINE_ARGUMENTS__CLIP_SKIP": "2"}
    assert load_settings(environ).defaults.pipeline_arguments == {"clip_skip": 2}


def test_a_variable_with_one_underscore_too_few_is_named() -> None:
    with pytest.raises(ConfigError, match="two underscores"):
        load_settings({"CACHE_DIT_SERVING_MODEL__PATH": "x"})


def test_an_unknown_override_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'max_queue'"):
        load_settings({"CACHE_DIT_SERVING__LIMITS__MAX_QUEU": "3"})


def test_an_unknown_configuration_lists_those_there_are() -> None:
    with pytest.raises(ConfigError, match="embedded"):
        load_settings({CONFIG_VARIABLE: "embeded"})
