"""Blocks of docs/operations.md against the files of deploy/ and the hardened run of `make image-check`."""

from __future__ import annotations

import re

import yaml

from tests.support.commands import commands_of
from tests.support.server import ROOT
from tools.image.container import HARDENED, VARIABLES

PAGE = ROOT / "docs" / "operations.md"
PROBES = ("startupProbe", "livenessProbe", "readinessProbe")


def options_of(words: list[str]) -> dict[str, list[str]]:
    """Return the values of each option; one without a value has an empty list."""
    options: dict[str, list[str]] = {}
    for word in words:
        if word.startswith("-"):
            last = options.setdefault(word, [])
        else:
            last.append(word)
    return options


def test_the_probes_are_those_of_deploy() -> None:
    [block] = re.findall(r"^```yaml\n(startupProbe.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    deployment = yaml.safe_load((ROOT / "deploy" / "kubernetes" / "base" / "deployment.yaml").read_text())
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    deployed = {name: container[name] for name in PROBES}
    for probe in deployed.values():
        probe["httpGet"]["port"] = ports[probe["httpGet"]["port"]]
    assert yaml.safe_load(block) == deployed


def test_the_container_is_hardened_as_the_one_that_image_check_runs() -> None:
    [words] = [words for words in commands_of(PAGE, "docker") if words[1] == "run" and "--read-only" in words]
    shown, tried = options_of(words[2:-1]), options_of([*HARDENED])
    assert {option: shown.get(option) for option in tried} == tried
    variables, of_the_check = (dict(each.split("=", 1) for each in pairs) for pairs in (shown["-e"], VARIABLES))
    needed = ("BENTOML_HOME", "HOME")
    assert {name: variables[name] for name in needed} == {name: of_the_check[name] for name in needed}
    folder = variables["CACHE_DIT_SERVING__OUTPUTS__ROOT"]
    assert folder in {volume.split(":")[1] for volume in shown["-v"]}
    assert "CACHE_DIT_SERVING__OUTPUTS__ROOT" in of_the_check
