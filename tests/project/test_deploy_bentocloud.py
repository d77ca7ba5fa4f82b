"""BentoCloud's file: read by BentoML's own classes, and matched to the server's settings."""

from __future__ import annotations

import re
from typing import Any

import click
import pytest
import yaml

from cache_dit_serving import __version__
from cache_dit_serving.config.footprints import WAYS, footprints
from cache_dit_serving.config.reading import Resolved, resolve
from tests.support.commands import commands_of
from tests.support.server import ROOT

FILE = ROOT / "deploy" / "bentocloud.yaml"
PREFIX = "CACHE_DIT_SERVING__"
[NAME] = re.findall(r'@bentoml\.service\(\n    name="(\w+)"', (ROOT / "service.py").read_text())
A100 = 40 * 10**9
"""Bytes of the smaller of the two GPUs of that name."""


FRAGMENT = ["bentoml", "build", "--version"]
"""Of a command that the page's text names and does not spell out."""


def parsed(words: list[str]) -> dict[str, Any]:
    """Return the parameters that a command of BentoML's reads from its words. The command is not run.

    Nor are BentoML's logs configured, which would disable all loggers of this process.

    Raises:
        UsageError: A word that it does not know.
    """
    from bentoml_cli.cli import cli

    command, [name, *rest] = cli, words
    while isinstance(command, click.Group):
        [name, *rest] = rest
        assert name in command.commands, words
        command = command.commands[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bentoml._internal.log.configure_logging", lambda: None)
        with command.make_context(name, rest) as context:
            return context.params


def given() -> Any:
    return yaml.safe_load(FILE.read_text())


def traffic() -> dict[str, Any]:
    overrides = given()["services"][NAME]["config_overrides"]
    return dict(overrides["traffic"])


def resolved() -> Resolved:
    return resolve({each["name"]: each["value"] for each in given()["envs"]})


# BentoML's classes are imported by the tests: that takes each process that collects them half a second.
def test_bentoml_reads_the_file_and_knows_each_field() -> None:
    from bentoml._internal.cloud.deployment import DeploymentAPI, DeploymentConfigParameters
    from bentoml._internal.cloud.schemas.schemasv2 import CreateDeploymentSchema
    from bentoml._internal.utils.cattr import bentoml_cattr

    parameters = DeploymentConfigParameters(config_file=str(FILE), service_name=NAME, dev=True)
    parameters.verify(create=False, _client=None)  # type: ignore[arg-type]  # asked for a Bento that is built, alone
    read = bentoml_cattr.structure(parameters.get_config_dict(_client=None), CreateDeploymentSchema)  # type: ignore[arg-type]
    DeploymentAPI._fix_and_validate_schema(read)
    assert bentoml_cattr.unstructure(read) == given(), "an unknown field is left out"


def test_a_field_that_bentoml_does_not_know_is_found() -> None:
    from bentoml._internal.cloud.schemas.schemasv2 import CreateDeploymentSchema
    from bentoml._internal.utils.cattr import bentoml_cattr

    misspelt = given() | {"secret": ["storage"]}
    read = bentoml_cattr.structure(misspelt, CreateDeploymentSchema)
    assert bentoml_cattr.unstructure(read) != misspelt


def test_the_service_is_the_one_of_the_bento() -> None:
    assert [*given()["services"]] == [NAME]
    assert given()["bento"] == f"{NAME}:{__version__}"
    assert yaml.safe_load((ROOT / "bentofile.yaml").read_text())["name"] == NAME


def test_each_variable_is_a_setting() -> None:
    read = resolved()
    set_by_variables = {origin for origin in read.origins.values() if origin.startswith(PREFIX)}
    assert set_by_variables == {each["name"] for each in given()["envs"] if each["name"].startswith(PREFIX)}
    assert read.name == "z-image-turbo"


def test_the_overrides_are_those_of_a_service_and_its_strategy_exists() -> None:
    from _bentoml_sdk.service.config import validate
    from bentoml._internal.cloud.schemas.modelschemas import DeploymentStrategy

    service = given()["services"][NAME]
    validate(service["config_overrides"])
    assert service["deployment_strategy"] in {strategy.value for strategy in DeploymentStrategy}


def test_times_are_those_of_the_server() -> None:
    settings = resolved().settings
    assert traffic()["timeout"] == settings.limits.max_request_s + 60, "the timeout whose answer says why comes first"
    assert settings.limits.max_step_s <= settings.limits.max_request_s
    assert (settings.server.drain_s or 0) + 10 <= 30, "Kubernetes' own time between SIGTERM and SIGKILL"


def test_requests_wait_in_the_servers_own_queue() -> None:
    assert traffic()["external_queue"] is False
    assert "max_concurrency" not in traffic(), "it would refuse polling and cancelling while the GPU is busy"
    assert traffic()["concurrency"] < resolved().settings.limits.max_queue


def test_the_model_fits_the_instance() -> None:
    assert given()["services"][NAME]["instance_type"] == "gpu.a100.1"
    assert footprints()[resolved().name].fitting(A100) == WAYS[0]


# bentoml 1.4.39 with click 8.2 and later
@pytest.mark.filterwarnings("ignore:The parameter --quiet is used more than once:UserWarning")
def test_bentoml_reads_the_commands_of_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    commands = [words for words in commands_of(ROOT / "docs" / "deploy.md", "bentoml") if words != FRAGMENT]
    assert {words[1] for words in commands} == {
        "build", "cloud", "containerize", "deploy", "deployment", "secret", "serve",
    }  # fmt: skip
    for words in commands:
        parsed(words)
    with pytest.raises(click.UsageError, match="--typ"):
        parsed(["bentoml", "secret", "create", "storage", "--typo", "env", "A=b"])


def test_the_secret_that_the_page_makes_is_the_one_of_the_file() -> None:
    [words] = [words for words in commands_of(ROOT / "docs" / "deploy.md", "bentoml") if words[1] == "secret"]
    secret = parsed(words)
    assert [secret["name"]] == given()["secrets"]
    assert secret["type"] == "env"
    variables = dict(secret["key_vals"])
    read = resolve({each["name"]: each["value"] for each in given()["envs"]} | variables)
    assert read.settings.jobs.database == variables[f"{PREFIX}JOBS__DATABASE"]
    assert read.settings.outputs.store == variables[f"{PREFIX}OUTPUTS__STORE"]
