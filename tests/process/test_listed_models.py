"""A list of models: the launcher, the other commands, and the checks before a start."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cache_dit_serving import preflight
from cache_dit_serving.cli import generate, generate_flags, show_config, tune, verify
from cache_dit_serving.cli.flags import parser
from cache_dit_serving.cli.serve import environment_of
from cache_dit_serving.config.reading import resolve
from cache_dit_serving.config.variables import CONFIG_VARIABLE, MODELS_VARIABLE
from cache_dit_serving.errors import ConfigError
from tests.support.server import START_S, supervised

LIST = """
models:
- {name: small, configuration: embedded, aliases: [tiny]}
- name: own
  configuration: own.yaml
  settings: {defaults: {width: 96}, cache_config: {max_warmup_steps: 3}}
  default: true
"""
OWN = """
model: {path: embedded, dtype: float32, cpu_threads: 1, lora_folder: styles, components: {vae: vae}}
speeds: {warm_up: true}
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a list, in the working directory, with relative paths in a model's configuration."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.yaml").write_text(LIST)
    (tmp_path / "own.yaml").write_text(OWN)
    (tmp_path / "vae").mkdir()
    return tmp_path / "list.yaml"


def test_the_launcher_makes_the_paths_of_every_model_absolute(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environ = environment_of(parser().parse_args(["--config", "list.yaml", "--port", "9"]), {})
    before = resolve({CONFIG_VARIABLE: "list.yaml"})
    monkeypatch.chdir("/")
    own, small = resolve(environ).models
    assert own.settings.model.lora_folder == file.parent / "styles"
    assert own.settings.model.components == {"vae": str(file.parent / "vae")}
    assert own.settings.cache == before.models[0].settings.cache
    assert small.settings.model == before.models[1].settings.model
    assert small.aliases == ("tiny",)
    assert resolve(environ).origin("models.1.settings.model.dtype") == "own.yaml"
    assert resolve(environ).described() == (
        f"configuration {file}: --config names it; models own (configuration own, the default), small (configuration "
        "embedded); server.unsupported_fields by the launcher"
    )


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--cache"], "--cache"),
        (["--rdt", "0.1"], "--rdt"),
        (["--model-path", "a/b", "--steps", "4"], "--model-path, --num-inference-steps"),
        (["--lora-path", "a/b"], "--lora-path"),
        (["--component", "vae=x"], "--component"),
    ],
)
def test_a_flag_of_one_model_is_refused_beside_a_list(file: Path, flags: list[str], named: str) -> None:
    with pytest.raises(ConfigError) as raised:
        environment_of(parser().parse_args(["--config", str(file), *flags]), {})
    assert str(raised.value) == f"{named}: the configuration lists models; models.<name>.settings has such settings"


def test_the_launcher_takes_a_list_from_a_variable(file: Path) -> None:
    environ = environment_of(parser().parse_args([]), {MODELS_VARIABLE: "{name: a, configuration: own.yaml}"})
    assert json.loads(environ[MODELS_VARIABLE])[0]["configuration"] == str(file.parent / "own.yaml")
    assert [model.name for model in resolve(environ).models] == ["a"]


def test_the_list_is_printed_with_its_origins(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert show_config.main(["--config", "list.yaml"]) == 0
    told = capsys.readouterr().out
    for line in (
        "  - name: small  # list.yaml",
        "        dtype: float32  # embedded.yaml",
        "        width: 96  # list.yaml",
        f"        lora_folder: {file.parent}/styles  # list.yaml",
        "  unsupported_fields: warn  # the launcher",
    ):
        assert f"{line}\n" in told


def test_a_command_without_a_server_draws_with_the_default_model(
    file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed = generate_flags.parser().parse_args(["a cat", "--config", str(file)])
    monkeypatch.delenv(CONFIG_VARIABLE, raising=False)
    settings = generate.settings_of(parsed)
    assert capsys.readouterr().err == "model own, the default of the list: small, own\n"
    assert settings.model.lora_folder == file.parent / "styles"
    assert settings.models == ()
    assert (settings.speeds.warm_up, settings.server.warm_up) == (False, False)


@pytest.mark.parametrize("command", [generate_flags, tune, verify])
@pytest.mark.parametrize("name", ["small", "tiny"])
def test_a_command_draws_with_the_model_that_it_names(
    command: Any, name: str, file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(CONFIG_VARIABLE, raising=False)
    settings = generate.settings_of(command.parser().parse_args(["--config", str(file), "--model", name]))
    assert capsys.readouterr().err == "model small, of the list: small, own\n"
    assert settings.model.lora_folder is None


@pytest.mark.parametrize(
    ("config", "refused"),
    [
        ("list.yaml", "--model big: the configuration lists no such model; there is small, tiny, own"),
        ("embedded", "--model big: the configuration has one model and no list; leave it out"),
    ],
)
def test_a_command_refuses_a_model_that_is_not_there(
    file: Path, config: str, refused: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(CONFIG_VARIABLE, raising=False)
    with pytest.raises(ConfigError, match=re.escape(refused)):
        generate.settings_of(generate_flags.parser().parse_args(["--config", config, "--model", "big"]))


BROKEN = [
    ("{path: /no/such/folder}", "model own: model.path '/no/such/folder': the model's path is neither"),
    ("{loras: [{name: red, path: ./red.safetensors}]}", "model own: model.loras: "),
    ("{device: 'cuda:9'}", "model own: device 'cuda:9' is not available here"),
]


@pytest.mark.parametrize(("model", "reason"), BROKEN)
def test_the_check_before_a_start_names_the_model(
    file: Path, model: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text(LIST.replace("own.yaml", "embedded").replace("{defaults: ", f"{{model: {model}, defaults: "))
    monkeypatch.setenv(CONFIG_VARIABLE, str(file))  # the program that looks at the device reads the environment
    monkeypatch.setattr(subprocess, "run", in_this_process)
    resolved = resolve(os.environ)
    with pytest.raises(ConfigError, match=re.escape(reason)):
        preflight.check(resolved.settings, resolved.models)


def in_this_process(words: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a module's `main` here, where torch is imported."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        status = importlib.import_module(words[-1]).main()
    return subprocess.CompletedProcess(words, status, said.getvalue())


def test_a_model_of_the_list_that_is_not_there_ends_the_start(tmp_path: Path) -> None:
    models = (
        "[{name: small, configuration: embedded}, {name: gone, settings: {model: {path: /no/such, cpu_threads: 1}}}]"
    )
    with supervised(tmp_path, CACHE_DIT_SERVING__MODELS=models) as server:
        assert server.process.wait(START_S) == 2
        log = server.log()
        assert "error: model gone: model.path '/no/such': the model's path is neither" in log
        assert "models small (configuration embedded, the default), gone" in log
        assert "Traceback" not in log
