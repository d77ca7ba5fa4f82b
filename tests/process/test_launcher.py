"""The launcher: the old server's flags set the settings tree, and it serves."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from cache_dit_serving.cli import generate_flags, show_config
from cache_dit_serving.cli import main as cli
from cache_dit_serving.cli import models as list_models
from cache_dit_serving.cli.flags import FLAGS, idle_flags, parser
from cache_dit_serving.cli.serve import command, environment_of
from cache_dit_serving.config.reading import load_settings, resolve
from cache_dit_serving.config.settings import Settings
from cache_dit_serving.config.variables import CONFIG_VARIABLE
from cache_dit_serving.errors import ConfigError
from tests.support.server import COMMAND
from tools.flags_page import PAGE, flags_page


def settings_of(*flags: str) -> Settings:
    return load_settings(environment_of(parser().parse_args(flags), {}))


def test_the_old_servers_first_example(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    settings = settings_of("--model-path", "Qwen/Qwen-Image", "--cache")
    assert settings == load_settings(
        {CONFIG_VARIABLE: "qwen-image", "CACHE_DIT_SERVING__SERVER__UNSUPPORTED_FIELDS": "warn"}
        | {"CACHE_DIT_SERVING__OUTPUTS__ROOT": str(settings.outputs.root)}
        | {"CACHE_DIT_SERVING__PROFILING__FOLDER": str(settings.profiling.folder)}
    )
    assert "configuration qwen-image: Qwen/Qwen-Image is its model" in caplog.text


def test_the_old_servers_example_of_little_memory(caplog: pytest.LogCaptureFixture) -> None:
    settings = settings_of(
        "--model-path", "Qwen/Qwen-Image", "--cache", "--enable-cpu-offload", "--device-map", "balanced"
    )
    assert (settings.model.device_map, settings.model.offload) == ("balanced", None)
    assert "--enable-cpu-offload adds nothing" in caplog.text
    assert settings_of("--model-path", "Qwen/Qwen-Image", "--enable-cpu-offload").model.offload == "model"


def test_a_models_path_goes_before_a_configuration_of_the_environment() -> None:
    flags = parser().parse_args(["--model-path", "Qwen/Qwen-Image"])
    assert environment_of(flags, {CONFIG_VARIABLE: "flux"})[CONFIG_VARIABLE] == "qwen-image"


def test_a_model_without_a_configuration_starts_with_the_old_servers_cache() -> None:
    settings = settings_of("--model-path", "x/y", "--cache")
    assert settings.model.path == "x/y"
    assert settings.model.dtype == "bfloat16"
    assert settings.cache is not None
    assert (settings.cache.Fn_compute_blocks, settings.cache.residual_diff_threshold) == (8, 0.08)


def test_without_the_cache_flag_there_is_no_cache() -> None:
    assert settings_of("--model-path", "x/y").cache is None
    known = settings_of("--model-path", "Qwen/Qwen-Image")
    assert known.cache is not None
    assert known.speeds.default == "lossless"


def test_a_cache_flag_changes_one_setting_of_a_models_configuration() -> None:
    settings = settings_of("--model-path", "Qwen/Qwen-Image", "--cache", "--rdt", "0.2")
    known = load_settings({CONFIG_VARIABLE: "qwen-image"}).cache
    assert known is not None
    assert settings.cache == known.model_copy(update={"residual_diff_threshold": 0.2})


def test_flags_that_the_old_server_never_read_are_accepted_and_named() -> None:
    words = [
        "--model-path",
        "x/y",
        "--repeat",
        "2",
        "--height",
        "512",
        "--negative-prompt",
        "",
        "--warmup",
        "2",
        "--perf",
    ]
    flags = parser().parse_args(words)
    assert idle_flags(flags) == ["--repeat", "--height", "--negative-prompt", "--warmup", "--perf"]
    assert load_settings(environment_of(flags, {})) == settings_of("--model-path", "x/y")
    assert idle_flags(parser().parse_args(["--model-path", "x/y"])) == []


def test_the_flags_of_a_base_and_of_components(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.gguf").touch()
    (tmp_path / "vae").mkdir()
    words = [
        "--model-path",
        "a.gguf",
        "--model-base",
        "Qwen/Qwen-Image",
        "--component",
        "vae=./vae",
        "text_encoder=x/y",
    ]
    environ = environment_of(parser().parse_args(words), {})
    assert environ[CONFIG_VARIABLE] == "qwen-image"
    model = load_settings(environ).model
    assert (model.path, model.base) == (str(tmp_path / "a.gguf"), "Qwen/Qwen-Image")
    assert model.components == {"vae": str(tmp_path / "vae"), "text_encoder": "x/y"}
    for wrong in (["vae"], ["vae=a", "vae=b"]):
        with pytest.raises(ConfigError, match="--component"):
            settings_of("--model-path", "x/y", "--component", *wrong)


def test_the_schedulers_that_requests_may_choose_come_from_a_flag() -> None:
    words = ("--model-path", "x/y")
    assert settings_of(*words).model.schedulers == {}
    offered = settings_of(*words, "--schedulers", "euler", "dpmpp_2m").model.schedulers
    assert list(offered) == ["euler", "dpmpp_2m"]
    with pytest.raises(ConfigError, match=r"model\.schedulers.* eulr is no known scheduler.* did you mean euler\?"):
        settings_of(*words, "--schedulers", "eulr")


def test_the_flags_of_a_lora(tmp_path: Path) -> None:
    words = ["--model-path", "x/y", "--lora-path", "maker/Some-LoRA", "--lora-name", "a b.safetensors"]
    (fused,) = settings_of(*words).model.loras
    assert fused.model_dump(exclude_defaults=True) == {
        "name": "a-b",
        "path": "maker/Some-LoRA",
        "weight_name": "a b.safetensors",
        "fuse": True,
    }
    file = tmp_path / "red.safetensors"
    file.touch()
    (beside,) = settings_of("--model-path", "x/y", "--lora-path", str(file), "--disable-fuse-lora").model.loras
    assert (beside.name, beside.path, beside.fuse) == ("red", str(file), False)
    with pytest.raises(ConfigError, match="--lora-name would have no effect without --lora-path"):
        settings_of("--model-path", "x/y", "--lora-name", "a.safetensors")
    with pytest.raises(ConfigError, match="contradict"):
        settings_of("--model-path", "x/y", "--lora-path", "a/b", "--fuse-lora", "--disable-fuse-lora")


@pytest.mark.parametrize(
    ("flags", "quant_type"),
    [
        (["-q"], "float8_weight_only"),
        (["--quantize", "--quantize-type", "float8"], "float8_per_row"),
        (["--quantize-type", "int8_weight_only"], "int8_weight_only"),
        (["--quant-type", "int4_wo"], "int4_weight_only"),
        (["--quantize", "--quant-type", "bnb_4bit"], "bitsandbytes_4bit"),
        (["--quant-type", "svdq_int4_r64_dq"], "svdq_int4_r64_dq"),
    ],
)
def test_the_flags_of_quantisation(flags: list[str], quant_type: str) -> None:
    quantize = settings_of("--model-path", "x/y", *flags).quantize
    assert quantize is not None
    assert quantize.quant_type == quant_type


@pytest.mark.parametrize(
    ("flags", "mode"),
    [
        (["--compile"], "default"),
        (["--compile-repeated-blocks"], "default"),
        (["--max-autotune", "--compile"], "max-autotune"),
    ],
)
def test_the_flags_of_compilation(flags: list[str], mode: str) -> None:
    compiled = settings_of("--model-path", "x/y", *flags).compile
    assert compiled is not None
    assert compiled.mode == mode


def test_the_flags_of_profiling(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = "--profile --profile-name flux --profile-dir traces --profile-activities CPU --profile-with-stack"
    profiling = settings_of("--model-path", "x/y", *words.split(), "--track-memory").profiling
    assert (profiling.requests, profiling.name, profiling.folder) == ("all", "flux", tmp_path / "traces")
    assert (profiling.activities, profiling.with_stack, profiling.record_shapes) == (("cpu",), True, False)
    both = settings_of("--model-path", "x/y", "--profile-activities", "CPU", "GPU").profiling
    assert both.activities == ("cpu", "gpu")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--parallel ulysses --parallel-size 4 --uaa --uaqkv", {"ulysses_size": 4, "ulysses_anything": True}),
        ("--parallel tp --compile --dcco", {"tp_size": 2, "compute_comm_overlap": False}),
        ("--parallel-type tp", {"tp_size": 2, "ulysses_size": None}),
        ("--cfg-parallel 2", {"guidance": 2, "world_size": 2}),
        ("--cfg-parallel 2 --parallel ulysses", {"guidance": 2, "ulysses_size": 2, "world_size": 4}),
        ("--parallel ring --parallel-size 2 --parallel-vae --parallel-text", {"ring_size": 2}),
    ],
)
def test_the_flags_of_parallelism(words: str, expected: dict[str, object]) -> None:
    parallelism = settings_of("--model-path", "x/y", *words.split()).parallelism
    assert parallelism is not None
    assert {key: getattr(parallelism, key) for key in expected} == expected
    assert (parallelism.extra_parallel_modules == ("vae", "text_encoder")) is ("--parallel-vae" in words)


def test_flags_about_parallelism_want_a_type() -> None:
    with pytest.raises(ConfigError, match="--ulysses-anything would have no effect without --parallel-type"):
        settings_of("--model-path", "x/y", "--uaa")


def test_a_lora_is_not_fused_into_weights_that_are_loaded_quantised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fused(*flags: str) -> bool:
        (lora,) = settings_of("--model-path", "x/y", "--lora-path", "a/b", *flags).model.loras
        return lora.fuse

    monkeypatch.chdir(tmp_path)
    assert fused("--quant-type", "int8")
    assert not fused("--quant-type", "bitsandbytes_4bit")
    assert not fused("--pipeline-quant-config-path", "quant.py")
    assert fused("--quant-type", "bnb_4bit", "--fuse-lora")
    quantize = settings_of("--model-path", "x/y", "--pipeline-quant-config-path", "quant.py").quantize
    assert quantize is not None
    assert quantize.pipeline_config_path == tmp_path / "quant.py"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--model-path", "x/y", "--warmup-int", "2"],
            "no flag --warmup-int; did you mean --warmup-interval?",
        ),
        (["--modle-path", "x/y"], "there is no flag --modle-path; did you mean --model-path?"),
        (["--modelpath=x/y"], "there is no flag --modelpath; did you mean --model-path?"),
        (["--zzz"], "there is no flag --zzz\n"),
        (["x/y"], "one argument too many: x/y"),
    ],
)
def test_a_flag_that_is_none_is_refused_with_the_nearest(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parser().parse_args(words)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_help_begins_with_one_line_of_usage_and_examples() -> None:
    for each in (parser(), generate_flags.parser()):
        usage, empty, description, *rest = each.format_help().splitlines()
        assert usage.startswith("usage: cache-dit-serving ")
        assert not empty
        assert description
        assert "cache-dit-serving" in "\n".join(rest[:6])


def test_every_example_of_the_help_is_a_command_line() -> None:
    for each in (parser(), generate_flags.parser()):
        examples = re.findall(rf"^ +{each.prog} (.*)", each.format_help(), re.MULTILINE)
        assert len(examples) > 3
        for example in examples:
            each.parse_args(shlex.split(example))


def test_a_command_that_is_none_is_refused_with_the_nearest(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["cache-dit-serving", "sevre"])
    assert cli.main() == 2
    assert "there is no command sevre; did you mean serve?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "mask"),
    [(["--steps-mask"], "medium"), (["--scm", "fast"], "fast"), (["--steps-mask", "--mask-policy", "ultra"], "ultra")],
)
def test_a_step_mask_by_name(words: list[str], mask: str) -> None:
    settings = settings_of("--model-path", "x/y", "--cache", *words)
    assert settings.cache is not None
    assert settings.cache.steps_computation_mask == mask


def test_steps_are_those_of_a_request_that_names_none() -> None:
    for flag in ("--steps", "--num-inference-steps"):
        assert settings_of("--model-path", "x/y", flag, "9").defaults.num_inference_steps == 9


def test_the_page_of_flags_is_that_of_the_table() -> None:
    assert PAGE.read_text() == flags_page(), "python -m tools.flags_page"


def test_help_says_each_default_as_the_settings_have_it() -> None:
    said = {flag.names[0]: flag.default_text for flag in FLAGS}
    assert (said["--Fn"], said["--Bn"], said["--rdt"], said["--workers"]) == ("8", "0", "0.08", "1")
    help_text = " ".join(parser().format_help().split())
    assert "first n blocks, always computed (default: 8)" in help_text
    assert "worker processes, each with the model (default: 1)" in help_text


def test_host_and_port_are_the_old_servers() -> None:
    words = command(parser().parse_args(["--model-path", "x/y"]))
    assert words[-4:] == ["--host", "0.0.0.0", "--port", "8000"]


@pytest.mark.parametrize(
    ("flags", "leaf", "value"),
    [
        (["--Fn", "2"], "Fn_compute_blocks", 2),
        (["--Bn", "1"], "Bn_compute_blocks", 1),
        (["--rdt", "0.15"], "residual_diff_threshold", 0.15),
        (["--max-warmup-steps", "4"], "max_warmup_steps", 4),
        (["--w", "4"], "max_warmup_steps", 4),
        (["--ws", "4"], "max_warmup_steps", 4),
        (["--Fn-compute-blocks", "2"], "Fn_compute_blocks", 2),
        (["--Bn-compute-blocks", "1"], "Bn_compute_blocks", 1),
        (["--residual-diff-threshold", "0.15"], "residual_diff_threshold", 0.15),
        (["--warmup-interval", "2"], "warmup_interval", 2),
        (["--wi", "2"], "warmup_interval", 2),
        (["--max-cached-steps", "9"], "max_cached_steps", 9),
        (["--mc", "9"], "max_cached_steps", 9),
        (["--max-continuous-cached-steps", "3"], "max_continuous_cached_steps", 3),
        (["--mcc", "3"], "max_continuous_cached_steps", 3),
        (["--taylorseer"], "enable_taylorseer", True),
        (["--taylorseer", "--taylorseer-order", "2"], "taylorseer_order", 2),
        (["--taylorseer", "-order", "2"], "taylorseer_order", 2),
    ],
)
def test_every_cache_flag_and_alias_sets_its_leaf(flags: list[str], leaf: str, value: object) -> None:
    cache = settings_of("--model-path", "x/y", "--cache", *flags).cache
    assert getattr(cache, leaf) == value


def test_model_and_server_flags_set_their_leaves() -> None:
    settings = settings_of(
        *("--model-path", "m", "--device", "cpu", "--dtype", "float32", "--attn", "native", "--workers", "2")
    )
    assert (settings.model.device, settings.model.dtype, settings.server.workers) == ("cpu", "float32", 2)
    assert settings.attention_backend == "native"


def test_flags_go_on_top_of_a_named_configuration() -> None:
    settings = settings_of("--config", "embedded", "--rdt", "0.4")
    assert settings.model.path == "embedded"
    assert settings.cache is not None
    assert (settings.cache.Fn_compute_blocks, settings.cache.residual_diff_threshold) == (1, 0.4)


def test_what_is_relative_is_relative_to_where_the_launcher_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "my.yaml").write_text("model: {path: x/y}")
    environ = environment_of(parser().parse_args(["--config", "my.yaml", "--model-path", "./model"]), {})
    monkeypatch.chdir("/")
    settings = load_settings(environ)
    assert settings.model.path == str(tmp_path / "model")
    assert settings.outputs.root == tmp_path / "outputs"


def test_a_relative_path_from_the_environment_is_relative_to_where_the_launcher_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    given = {
        "MODEL__PATH": "model",
        "MODEL__LORA_FOLDER": "loras",
        "INPUTS__FOLDERS": '["pictures", "/srv/pictures"]',
        "COMPILE__FOLDER": "kernels",
        "SERVER__API_KEYS_FILE": "keys.yaml",
    }
    settings = load_settings(
        environment_of(parser().parse_args([]), {f"CACHE_DIT_SERVING__{leaf}": path for leaf, path in given.items()})
    )
    assert settings.model.path == str(tmp_path / "model")
    assert settings.model.lora_folder == tmp_path / "loras"
    assert settings.inputs.folders == (tmp_path / "pictures", Path("/srv/pictures"))
    assert settings.compile is not None
    assert settings.compile.folder == tmp_path / "kernels"
    assert settings.server.api_keys_file == tmp_path / "keys.yaml"
    assert settings.profiling.folder == tmp_path / "profiles"


def test_the_log_says_which_flag_or_variable_set_what(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    variables = {"CACHE_DIT_SERVING__LIMITS__MAX_QUEUE": "3", CONFIG_VARIABLE: '"embedded"'}
    flags = parser().parse_args(["--model-path", "Qwen/Qwen-Image", "--rdt", "0.2", "--cache"])
    assert resolve(environment_of(flags, variables)).described() == (
        "configuration qwen-image: Qwen/Qwen-Image is its model; cache.residual_diff_threshold by --rdt; "
        "limits.max_queue by CACHE_DIT_SERVING__LIMITS__MAX_QUEUE; model.path by --model-path; "
        "server.unsupported_fields by the launcher"
    )
    named = resolve(environment_of(parser().parse_args(["--config", "generic", "--device", "cpu"]), variables))
    assert named.described().startswith("configuration generic: --config names it; limits.max_queue by")
    assert named.origin("model.device") == "--device"
    by_variable = resolve(environment_of(parser().parse_args([]), variables)).described()
    assert by_variable.startswith("configuration embedded: CACHE_DIT_SERVING_CONFIG names it;")


def test_a_mistake_names_the_flag_that_was_given() -> None:
    with pytest.raises(ConfigError, match=r"qwen-image.yaml with --model-path, --rdt: 'cache.residual_diff_threshold'"):
        settings_of("--model-path", "Qwen/Qwen-Image", "--cache", "--rdt", "-1")


def test_the_settings_are_printed_with_their_origins(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CACHE_DIT_SERVING__LIMITS__MAX_QUEUE", "3")
    assert show_config.main(["--config", "flux", "--port", "9", "--Fn", "2", "--lora-path", "maker/Red"]) == 0
    told = capsys.readouterr().out
    for line in (
        "  path: black-forest-labs/FLUX.1-dev  # flux.yaml",
        "  max_queue: 3  # CACHE_DIT_SERVING__LIMITS__MAX_QUEUE",
        "  Fn_compute_blocks: 2  # --Fn",
        "  unsupported_fields: warn  # the launcher",
    ):
        assert f"{line}\n" in told
    assert "loras: [{name: Red, path: maker/Red" in told
    assert show_config.main([]) == 0
    assert "path: embedded\n" in capsys.readouterr().out


def test_a_device_of_choice_is_not_hidden_by_bentoml() -> None:
    flags = parser().parse_args(["--model-path", "x/y", "--device", "cuda:1"])
    assert environment_of(flags, {})["BENTOML_DISABLE_GPU_ALLOCATION"] == "1"


def test_cache_flags_take_the_place_of_a_configured_default_speed(tmp_path: Path) -> None:
    file = tmp_path / "fast.yaml"
    file.write_text("speeds: {default: fast}\n")
    assert settings_of("--config", str(file)).speeds.default == "fast"
    flagged = settings_of("--config", str(file), "--cache", "--rdt", "0.3")
    assert flagged.speeds.default is None
    assert flagged.cache is not None
    assert flagged.cache.residual_diff_threshold == 0.3


def test_a_cache_flag_without_a_cache_is_refused() -> None:
    with pytest.raises(ConfigError, match="residual_diff_threshold would have no effect without --cache"):
        settings_of("--model-path", "x/y", "--rdt", "0.1")


def test_a_model_must_be_named() -> None:
    with pytest.raises(ConfigError, match="--model-path"):
        settings_of()


def test_mistakes_end_with_status_2_and_no_traceback() -> None:
    words = [sys.executable, "-m", "cache_dit_serving.serve", "--config", "embeded"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "no configuration named 'embeded'; did you mean embedded? `cache-dit-serving models` lists" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_command_lists_configurations_and_flags(capsys: pytest.CaptureFixture[str]) -> None:
    models = subprocess.run([COMMAND, "models"], capture_output=True, text=True, check=True)
    assert "qwen-image" in models.stdout
    assert list_models.main(["--check"]) == 0
    checked = capsys.readouterr().out
    assert "attention backends: native\n  _native_cudnn does not run on cpu\n" in checked
    assert "types of quantisation: float8_weight_only, int8_per_row" in checked
    helped = subprocess.run(
        [Path(sys.executable).with_name("cache-dit-serve"), "--help"], capture_output=True, text=True, check=True
    )
    assert "--max-continuous-cached-steps" in helped.stdout
    assert "--disable-compute-comm-overlap" in helped.stdout
