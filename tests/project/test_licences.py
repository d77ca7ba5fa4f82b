"""What the image holds and under which licences: its bill of materials, and docs/licences.md."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.server import ROOT
from tools.licences.__main__ import PAGE, SITE, licences_page, normalized, pinned
from tools.licences.bundled import LICENCES, bundled_libraries
from tools.licences.declared import UNDECLARED, declared_licence, is_copyleft

SETUP = ROOT / "docker" / "setup.sh"
SMALL = ("av", "cache_dit", "numpy", "protobuf", "psycopg", "safetensors", "torch")
"""Packages of each way to declare a licence. A whole environment takes CycloneDX's validator 13 s."""
UV = """\
#!/bin/sh
[ "$1 $2 $3" = "tool run --from" ] || exit 0 # the image's installs torchvision and torchao
shift 5
exec {python} -m cyclonedx_py "$@"
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the bill of materials and the list that docker/setup.sh writes, of few packages."""
    folder = tmp_path_factory.mktemp("image")
    environment = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True, timeout=180)
    [site] = environment.glob("lib/python3*/site-packages")
    for name in SMALL:
        [metadata] = SITE.glob(f"{name}-*.dist-info")
        shutil.copytree(metadata, site / metadata.name)
    uv = environment / "bin" / "uv"
    uv.write_text(UV.format(python=sys.executable))
    uv.chmod(0o755)
    variables = {"VIRTUAL_ENV": str(environment), "BENTO_PATH": str(folder), "HOME": str(folder)}
    variables["PATH"] = f"{uv.parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run([SETUP], env=variables, cwd=folder, check=True, timeout=180)
    return environment / "share"


@pytest.fixture
def bill(written: Path) -> str:
    return (written / "sbom.cdx.json").read_text(encoding="utf-8")


def test_the_bill_of_materials_is_of_cyclonedx(bill: str) -> None:
    # Here: the validator takes each process that collects the tests a second.
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(bill) is None


def test_the_bill_of_materials_names_each_package_with_its_licence(bill: str) -> None:
    components: dict[str, dict[str, Any]] = {each["name"]: each for each in json.loads(bill)["components"]}
    assert {*components} == {*SMALL}
    assert components["psycopg"]["licenses"][0]["license"]["id"] == "LGPL-3.0-only"
    assert components["numpy"]["purl"] == f"pkg:pypi/numpy@{components['numpy']['version']}"


def test_the_list_of_licences_has_a_line_for_each_package_of_the_bill(written: Path, bill: str) -> None:
    lines = [line.split("\t") for line in (written / "licences.tsv").read_text(encoding="utf-8").splitlines()]
    components = {each["name"]: each["version"] for each in json.loads(bill)["components"]}
    assert {name: version for name, version, _ in lines} == components
    assert [name for name, *_ in lines] == sorted(components, key=str.lower)
    licences = {name: licence for name, _, licence in lines}
    assert licences["av"] == "BSD-3-Clause"  # by its expression
    assert licences["protobuf"] == "3-Clause BSD License"  # a name that SPDX does not know
    assert licences["safetensors"] == "Apache Software License"  # by its classifier
    assert licences["torch"].startswith("Apache-2.0 AND ")
    assert licences["cache_dit"] == "undeclared"


def test_the_image_takes_the_tool_of_the_tests() -> None:
    pin = re.search(r"^cyclonedx-bom==\S+$", (ROOT / "requirements-test.txt").read_text(encoding="utf-8"), re.MULTILINE)
    assert pin is not None
    assert f"--from {pin[0]} " in SETUP.read_text(encoding="utf-8")


def test_the_page_is_of_the_pins() -> None:
    assert PAGE.read_text(encoding="utf-8") == licences_page(), "python -m tools.licences"


def test_each_package_declares_a_licence() -> None:
    assert [name for name, package in pinned().items() if declared_licence(package) == UNDECLARED] == []


def test_each_library_in_a_wheel_has_a_licence() -> None:
    held = {folder: names for folder, names in bundled_libraries(SITE).items() if normalized(folder) in pinned()}
    assert "x264" in held["av"]
    assert {folder: names - {*LICENCES} for folder, names in held.items() if names - {*LICENCES}} == {}


@pytest.mark.parametrize(
    ("licence", "copyleft"),
    [
        ("GPL-2.0-or-later", True),
        ("LGPL-3.0-or-later OR GPL-2.0-or-later", True),
        ("Mozilla Public License 2.0 (MPL 2.0)", True),
        ("MPL-2.0 AND MIT", True),
        ("BSD-3-Clause OR GPL-2.0-only", False),
        ("Apache-2.0", False),
    ],
)
def test_a_licence_is_copyleft_where_no_alternative_is_free_of_it(licence: str, copyleft: bool) -> None:
    assert is_copyleft(licence) == copyleft
