"""The launcher: the old server's flags set the settings tree, and it serves."""

from __future__ import annotations

import base64
import io
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cache_dit_serving.config.reading import load_settings
from cache_dit_serving.config.settings import Settings
from cache_dit_serving.errors import ConfigError
from cache_dit_serving.pipeline.load import EMBEDDED_FOLDER
from cache_dit_serving.serve import command, environment_of, idle_flags, parser
from tests.support.server import ready, serving


def settings_of(*flags: str) -> Settings:
    return load_settings(environment_of(parser().parse_args(flags), {}))


def test_the_old_servers_first_example() -> None:
    settings = settings_of("--model-path", "Qwen/Qwen-Image", "--cache")
    assert settings.model.path == "Qwen/Qwen-Image"
    assert settings.model.dtype == "bfloat16"
    assert settings.cache is not None
    assert (settings.cache.Fn_compute_blocks, settings.cache.residual_diff_threshold) == (8, 0.08)


def test_without_the_cache_flag_there_is_no_cache() -> None:
    assert settings_of("--model-path", "Qwen/Qwen-Image").cache is None


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


def test_a_flag_cut_short_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["--model-path", "x/y", "--warmup-int", "2"])
    assert "unrecognized arguments: --warmup-int" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [["--compile"], ["--parallel", "ulysses"], ["-q"], ["--quantize-type", "float8"], ["--lora-path", "a"]],
)
def test_a_flag_that_is_yet_to_come_says_so(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parser().parse_args(["--model-path", "x/y", *words])
    assert f"{words[0]} is not supported yet; docs/migration.md lists what is" in capsys.readouterr().err


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
    assert "there are: embedded" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_command_lists_configurations_and_flags() -> None:
    models = subprocess.run(
        [Path(sys.executable).with_name("cache-dit-serving"), "models"], capture_output=True, text=True, check=True
    )
    assert "qwen-image" in models.stdout
    helped = subprocess.run(
        [sys.executable, "-m", "cache_dit_serving.serve", "--help"], capture_output=True, text=True, check=True
    )
    assert "--max-continuous-cached-steps" in helped.stdout
    for later in ("--quantize", "--compile", "--parallel"):
        assert later not in helped.stdout


def pixels_of(answer: dict[str, Any]) -> bytes:
    with Image.open(io.BytesIO(base64.b64decode(answer["images"][0]))) as picture:
        return picture.tobytes()


OLD_REQUESTS: list[dict[str, object]] = [
    {"guidance_scale": 7.5},
    # Every field of the old server's request that has a default, as its clients dump it.
    {
        "negative_prompt": "",
        "width": 96,
        "height": 96,
        "guidance_scale": 3.5,
        "sigmas": None,
        "num_images": 1,
        "image_urls": None,
        "num_frames": None,
        "fps": 16,
        "include_stats": False,
        "output_format": "base64",
        "output_dir": None,
    },
    {"image_urls": [], "num_frames": 1},
    {"width": "96", "height": 96.0, "num_inference_steps": "6", "seed": "3"},
]
"""Of clients of cache_dit.serve, on weights without guidance."""


def test_a_folder_is_served_with_the_cache_from_the_command_line(tmp_path: Path) -> None:
    folder = shutil.copytree(EMBEDDED_FOLDER, tmp_path / "my-model")
    words = [sys.executable, "-m", "cache_dit_serving.serve", "--model-path", str(folder), "--host", "127.0.0.1"]
    flags = ["--dtype", "float32", "--device", "cpu", "--cache", "--Fn", "1", "--w", "4", "--rdt", "0.3"]
    with serving(
        tmp_path / "server",
        [*words, *flags],
        cwd=tmp_path,
        CACHE_DIT_SERVING__MODEL__CPU_THREADS="1",
        CACHE_DIT_SERVING__DEFAULTS__WIDTH="96",
        CACHE_DIT_SERVING__DEFAULTS__HEIGHT="96",
        CACHE_DIT_SERVING__DEFAULTS__PIPELINE_ARGUMENTS="{max_sequence_length: 32}",
    ) as server:
        server.wait_for(ready)
        answer = server.generate(num_inference_steps=12).json()
        assert answer["cache"]["engaged"]
        assert answer["cache"]["settings"]["max_warmup_steps"] == 4
        assert answer["warnings"] == []
        plain = server.generate(num_inference_steps=6, seed=3).json()
        for fields in OLD_REQUESTS:
            response = server.generate(**{"num_inference_steps": 6, "seed": 3} | fields)
            assert response.status_code == 200, response.text
            old = response.json()
            assert pixels_of(old) == pixels_of(plain)
            said = [(warning["param"], warning["code"]) for warning in old["warnings"]]
            assert said == ([("guidance_scale", "unsupported_field")] if "guidance_scale" in fields else [])
        assert (
            'cache_dit_serving_warnings_total{code="unsupported_field",param="guidance_scale"} 2.0'
            in server.get("/metrics").text
        )
        assert "stats" not in plain
        assert len(server.generate(num_inference_steps=6, include_stats=True).json()["stats"]["cache_stats"]) == 1
        rounded = server.generate(num_inference_steps=6, width=90, height=101).json()
        assert [(warning["param"], warning["code"]) for warning in rounded["warnings"]] == [
            ("width", "adjusted"),
            ("height", "adjusted"),
        ]
        with Image.open(io.BytesIO(base64.b64decode(rounded["images"][0]))) as picture:
            assert picture.size == (80, 96)
        info = server.get("/get_model_info").json()
        assert info["model"] == info["model_path"] == "my-model"
        assert (info["torch_dtype"], info["enable_cache"], info["is_loaded"]) == ("torch.float32", True, True)
        assert str(tmp_path) not in str(info)
