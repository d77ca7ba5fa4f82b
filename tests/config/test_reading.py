"""The settings tree: names, overrides, and errors that say what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cache_dit_serving.config.catalog import config_names
from cache_dit_serving.config.printed import printed
from cache_dit_serving.config.reading import load_settings, resolve
from cache_dit_serving.config.variables import CONFIG_VARIABLE
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
        ("speeds: {floors: {sim: 0.9}}", "unknown key 'speeds.floors.sim'; did you mean 'ssim'?"),
        ("speeds: {fast: {floors: {psnr: 30}}}", "unknown key 'speeds.fast.floors.psnr'; did you mean 'psnr_db'?"),
        ("speeds: {floors: {ssim: 95}}", "'speeds.floors.ssim'"),
        ("speeds: {lossless: {floors: {ssim: 1}}}", "unknown key 'speeds.lossless'"),
        ("model: {path: ", "cannot be read as YAML"),
        ("model: {path: !!timestamp x}", "cannot be read as YAML"),
        (
            "defaults: {pipeline_arguments: {max_sequence_length: 64}}",
            "max_sequence_length is a setting of its own; write defaults.max_sequence_length instead",
        ),
    ],
)
def test_a_mistake_is_named_with_its_remedy(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load_settings(write(tmp_path / "c.yaml", text))
    assert message in str(raised.value)


def test_a_speeds_own_floor_takes_the_place_of_that_of_every_speed(tmp_path: Path) -> None:
    environ = write(tmp_path / "c.yaml", "speeds: {floors: {ssim: 0.95, psnr_db: 30}, fast: {floors: {ssim: 0.9}}}")
    speeds = load_settings(environ).speeds
    assert speeds.floors_of("high") == {"ssim": 0.95, "psnr_db": 30}
    assert speeds.floors_of("fast") == {"ssim": 0.9, "psnr_db": 30}
    assert speeds.floors_of("lossless") == {}
    looser = load_settings(environ | {"CACHE_DIT_SERVING__SPEEDS__FLOORS__SSIM": "0.8"}).speeds
    assert looser.floors_of("balanced") == {"ssim": 0.8, "psnr_db": 30}
    assert load_settings({}).speeds.floors_of("fast") == {}


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


@pytest.mark.parametrize("text", ['"embedded"', "'embedded'", "embedded\r", '"embedded"\r', " embedded "])
def test_what_an_env_file_leaves_around_a_value_is_no_part_of_it(text: str) -> None:
    assert load_settings({"CACHE_DIT_SERVING__MODEL__PATH": text}) == load_settings({})
    assert load_settings({CONFIG_VARIABLE: text}) == load_settings({})


@pytest.mark.parametrize("text", ["'[512, 1024]'", "512,1024", "512, 1024\r", '"512,1024"'])
def test_a_list_from_the_environment(text: str) -> None:
    assert load_settings({"CACHE_DIT_SERVING__LIMITS__SIZES": text}).limits.sizes == (512, 1024)


def test_one_value_is_a_list_of_one(tmp_path: Path) -> None:
    environ = {
        "CACHE_DIT_SERVING__SERVER__MODEL_NAMES": "gpt-image-1",
        "CACHE_DIT_SERVING__SERVER__OPEN_ROUTES": "health",
        "CACHE_DIT_SERVING__LIMITS__SIZES": "96",
        "CACHE_DIT_SERVING__INPUTS__FOLDERS": "/srv/a,b",
        "CACHE_DIT_SERVING__MODEL__LORAS": "{name: red, path: maker/red}",
        "CACHE_DIT_SERVING__QUANTIZE__COMPONENTS_TO_QUANTIZE": "transformer",
        "CACHE_DIT_SERVING__QUANTIZE__QUANT_TYPE": "int8",
    }
    for settings in (
        load_settings(environ),
        load_settings(
            write(
                tmp_path / "c.yaml",
                "server: {model_names: gpt-image-1, open_routes: health}\nlimits: {sizes: 96}\n"
                "inputs: {folders: '/srv/a,b'}\nmodel: {loras: {name: red, path: maker/red}}\n"
                "quantize: {components_to_quantize: transformer, quant_type: int8}\n",
            )
        ),
    ):
        assert settings.server.model_names == ("gpt-image-1",)
        assert settings.server.open_routes == ("health",)
        assert settings.limits.sizes == (96,)
        assert settings.inputs.folders == (Path("/srv/a,b"),)
        assert [lora.name for lora in settings.model.loras] == ["red"]
        assert settings.quantize is not None
        assert settings.quantize.components_to_quantize == ("transformer",)


def test_a_mapping_or_a_text_that_is_no_list_stays_so() -> None:
    environ = {
        "CACHE_DIT_SERVING__QUANTIZE__COMPONENTS_TO_QUANTIZE": "{transformer: int8}",
        "CACHE_DIT_SERVING__DEFAULTS__NEGATIVE_PROMPT": "blurry, dull",
        "CACHE_DIT_SERVING__CACHE__STEPS_COMPUTATION_MASK": "medium",
    }
    settings = load_settings(environ)
    assert settings.quantize is not None
    assert isinstance(settings.quantize.components_to_quantize, dict)
    assert settings.defaults.negative_prompt == "blurry, dull"
    assert settings.cache is not None
    assert settings.cache.steps_computation_mask == "medium"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_file_that_windows_wrote(tmp_path: Path, encoding: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_bytes("limits:\r\n  max_queue: 3\r\ndefaults: {negative_prompt: é}\r\n".encode(encoding))
    settings = load_settings({CONFIG_VARIABLE: str(file)})
    assert (settings.limits.max_queue, settings.defaults.negative_prompt) == (3, "é")


def test_a_file_in_another_encoding_is_named(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_bytes("defaults: {negative_prompt: é}".encode("latin-1"))
    with pytest.raises(ConfigError, match="byte 28 is no text in UTF-8"):
        load_settings({CONFIG_VARIABLE: str(file)})


def test_each_value_has_its_origin(tmp_path: Path) -> None:
    environ = write(tmp_path / "mine.yaml", "limits: {max_queue: 3, max_side: 64}\ncache: {max_warmup_steps: 4}\n")
    resolved = resolve(environ | {"CACHE_DIT_SERVING__LIMITS__MAX_SIDE": "128", "CACHE_DIT_SERVING__CACHE": "null"})
    assert resolved.origins == {
        "limits.max_queue": "mine.yaml",
        "limits.max_side": "CACHE_DIT_SERVING__LIMITS__MAX_SIDE",
        "cache": "CACHE_DIT_SERVING__CACHE",
    }
    assert resolved.described() == (
        f"configuration {tmp_path}/mine.yaml: CACHE_DIT_SERVING_CONFIG names it; "
        "cache by CACHE_DIT_SERVING__CACHE; limits.max_side by CACHE_DIT_SERVING__LIMITS__MAX_SIDE"
    )
    text = printed(resolved)
    assert "  max_queue: 3  # mine.yaml\n" in text
    assert "  max_side: 128  # CACHE_DIT_SERVING__LIMITS__MAX_SIDE\n" in text
    assert "  max_followers: 64\n" in text
    assert "\ncache: null\n" in text


def test_no_secret_is_printed(tmp_path: Path) -> None:
    secrets = {
        "WEBHOOKS__SECRET": "whsec_c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0",
        "SERVER__API_KEYS": "sk-secret-0123456789",
        "OUTPUTS__STORE": "s3://pictures",
        "OUTPUTS__STORE_OPTIONS": "{access_key_id: x, secret_access_key: secret}",
        "JOBS__DATABASE": "postgresql://me:secret@db/jobs",
    }
    environ = {f"CACHE_DIT_SERVING__{key}": value for key, value in secrets.items()}
    text = printed(resolve(environ))
    for secret in ("c2Vjc", "sk-", "secret_access", "postgresql"):
        assert secret not in text
    assert "# secret: set, not shown  # CACHE_DIT_SERVING__WEBHOOKS__SECRET" in text
    assert "store: s3://pictures  # CACHE_DIT_SERVING__OUTPUTS__STORE" in text


@pytest.mark.parametrize("name", ["embedded", "generic", "wan2.2-t2v"])
def test_what_is_printed_is_yaml_of_the_whole_tree(name: str) -> None:
    resolved = resolve({CONFIG_VARIABLE: name})
    tree = yaml.safe_load(printed(resolved))
    assert tree == resolved.settings.model_dump(mode="json")
