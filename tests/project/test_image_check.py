"""The verdicts of `make image-check`: what must not be in an image, its bill of materials, what was not linted."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.server import ROOT
from tools.image.__main__ import conclude, lint
from tools.image.bill import INSIDE, LIST, bill_problems
from tools.image.contents import unwanted
from tools.image.page import page_problems
from tools.image.storage import Storage

SOURCES = "home/bentoml/bento/src"


@pytest.mark.parametrize(
    "name",
    [
        "usr/bin/gcc",
        "usr/local/bin/make",
        "usr/bin/git",
        "bin/ld",
        f"{SOURCES}/.git",
        f"{SOURCES}/tests",
        f"{SOURCES}/tests/conftest.py",
        f"{SOURCES}/deploy/keys/keys.yaml",
        f"{SOURCES}/.env",
        "root/.netrc",
        "home/bentoml/.git-credentials",
        "home/bentoml/.ssh/id_ed25519",
        "root/.cache/pip/http",
    ],
)
def test_compilers_sources_of_tests_and_secrets_are_unwanted(name: str) -> None:
    assert unwanted([name, "usr/bin/env"]) == [name]


@pytest.mark.parametrize(
    "name",
    [
        "usr/bin/python3.11",
        "usr/lib/gcc",
        "app/.venv/lib/python3.11/site-packages/torch/bin/ld-info",
        f"{SOURCES}/src/cache_dit_serving/serve.py",
        f"{SOURCES}/.environment",
        "root/.cache",
    ],
)
def test_other_files_are_not(name: str) -> None:
    assert unwanted([name]) == []


def test_a_compiler_that_was_asked_for_is_wanted_and_git_is_not() -> None:
    assert unwanted(["usr/bin/g++", "usr/bin/git", "root/.netrc"], compiler=True) == ["root/.netrc", "usr/bin/git"]


def image_with(root: Path, *packages: str, listed: tuple[str, ...] | None = None, **bill: Any) -> Path:
    """Write the bill of an image with packages of version 1, and its list of licences."""
    components = [{"type": "library", "name": name, "version": "1"} for name in packages]
    written = {"bomFormat": "CycloneDX", "specVersion": "1.6", "components": components} | bill
    (root / INSIDE).parent.mkdir(parents=True)
    (root / INSIDE).write_text(json.dumps(written))
    (root / LIST).write_text("".join(f"{name}\t1\tMIT\n" for name in (packages if listed is None else listed)))
    return root


def test_packages_of_the_page_those_of_cuda_and_torchvision_are_expected(tmp_path: Path) -> None:
    assert bill_problems(image_with(tmp_path, "torch", "cache_dit", "torchvision", "nvidia-nccl-cu12", "triton")) == []


def test_a_package_that_the_page_does_not_name_is_a_problem(tmp_path: Path) -> None:
    assert bill_problems(image_with(tmp_path, "torch", "Left_Pad")) == ["left-pad is not in licences.md"]


def test_a_list_without_a_package_of_the_bill_is_a_problem(tmp_path: Path) -> None:
    [problem] = bill_problems(image_with(tmp_path, "torch", "numpy", listed=("torch",)))
    assert problem == f"{LIST} and {INSIDE} name other packages"


def test_a_bill_that_is_not_cyclonedx_is_a_problem(tmp_path: Path) -> None:
    [problem] = bill_problems(image_with(tmp_path, "torch", components=[{"name": "torch"}]))
    assert problem.startswith(f"{INSIDE} is not CycloneDX: ")


def test_the_page_reads_the_files_that_the_check_reads() -> None:
    page = (ROOT / "docs" / "image.md").read_text()
    assert re.findall(r"--entrypoint cat IMAGE (\S+)", page) == [f"/{INSIDE}", f"/{LIST}"]


@pytest.mark.parametrize(("line", "problems"), [("echo offline-model CycloneDX torch", 2), ("exit 125", 3)])
def test_a_command_of_the_page_that_fails_or_prints_something_else_is_a_problem(
    tmp_path: Path, line: str, problems: int
) -> None:
    podman = tmp_path / "programs" / "podman"
    podman.parent.mkdir()
    podman.write_text(f"#!/bin/sh\n{line}\n")
    podman.chmod(0o755)
    storage = Storage(tmp_path / "storage")
    storage.environ["PATH"] = str(podman.parent)
    found = page_problems(storage)
    assert len(found) == problems
    assert all(each.startswith("docker run --rm ") for each in found)


def test_where_hadolint_cannot_be_had_the_result_says_that_nothing_was_linted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    said = lint(Storage(tmp_path), tmp_path / "Dockerfile")
    conclude([], said)
    assert capsys.readouterr().out == "no problem found; NOT LINTED: hadolint cannot be had\n"
    with pytest.raises(SystemExit, match="uid 0\nNOT LINTED"):
        conclude(["uid 0"], said)
