"""One version, wherever it is said."""

from __future__ import annotations

import json
import re
import tomllib

import pytest
import yaml
from packaging.specifiers import SpecifierSet

from cache_dit_serving import __version__
from cache_dit_serving.cli.main import main
from tests.support.server import ROOT
from tools.image.labels import SOURCE, image_labels

DECLARED = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PROJECT, LICENCE, PYTHONS = DECLARED["version"], DECLARED["license"], DECLARED["requires-python"]


def test_the_package_the_command_and_the_api_say_the_version_of_the_project(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert __version__ == PROJECT
    monkeypatch.setattr("sys.argv", ["cache-dit-serving", "--version"])
    assert main() == 0
    assert capsys.readouterr().out.strip() == PROJECT
    document = json.loads((ROOT / "tests" / "snapshots" / "openapi.json").read_text())
    assert document["info"]["version"] == PROJECT


def test_a_bento_where_the_package_is_not_installed_says_it_too() -> None:
    source = (ROOT / "src" / "cache_dit_serving" / "__init__.py").read_text()
    assert re.findall(r'__version__ = "([^"]+)"', source) == [PROJECT]


def test_the_changelog_and_the_page_of_deployment_name_it() -> None:
    assert f"\n## [{PROJECT}]" in (ROOT / "CHANGELOG.md").read_text()
    page = (ROOT / "docs" / "deploy.md").read_text()
    assert {*re.findall(r"bentoml build --version ([\d.]+)", page)} == {PROJECT}
    assert {*re.findall(r"cache_dit_serving:([\d.]+\d)", page)} == {PROJECT}


def test_the_bento_and_its_image_have_it_as_a_label() -> None:
    labels = yaml.safe_load((ROOT / "bentofile.yaml").read_text())["labels"]
    assert labels == {"org.opencontainers.image.version": PROJECT, "org.opencontainers.image.licenses": LICENCE}
    page = (ROOT / "docs" / "deploy.md").read_text().replace('"$(git rev-parse HEAD)"', "HEAD")
    given = dict(re.findall(r"--opt label=([\w.]+)=(\S+)", page))
    checked = image_labels(ROOT, SOURCE)
    assert given == checked | {"org.opencontainers.image.revision": "HEAD"}
    assert given.items() > labels.items()


def test_the_page_of_support_names_the_supported_pythons_and_the_pins() -> None:
    page = (ROOT / "docs" / "support.md").read_text()
    pins = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
    supported = [python for python in ("3.10", "3.11", "3.12", "3.13", "3.14") if python in SpecifierSet(PYTHONS)]
    assert f"| Python | {', '.join(supported)} |" in page
    assert f"| torch | {pins['torch']}, as pinned |" in page
    libraries = ", ".join(pins[name] for name in ("diffusers", "cache-dit", "bentoml"))
    assert f"| diffusers, cache-dit, BentoML | {libraries}, as pinned |" in page
