"""The pins: each installs on every Python that the project supports."""

from __future__ import annotations

import re
from importlib.metadata import metadata

import pytest
from packaging.specifiers import SpecifierSet

from tests.support.server import ROOT

PIN = re.compile(r"^([A-Za-z0-9._-]+)==", re.MULTILINE)
PINS = [
    name
    for file in ("requirements.txt", "requirements-test.txt")
    for name in PIN.findall((ROOT / file).read_text(encoding="utf-8"))
]


@pytest.mark.parametrize("python", ["3.11.0", "3.12.0", "3.13.0"])
def test_every_pin_installs_on_the_first_release_of_each_supported_python(python: str) -> None:
    declared = {name: metadata(name) for name in PINS}
    wanted = {name: each["Requires-Python"] for name, each in declared.items() if "Requires-Python" in each}
    assert {name: needs for name, needs in wanted.items() if python not in SpecifierSet(needs)} == {}


def test_a_commit_is_checked_by_the_ruff_of_make_lint() -> None:
    pinned = re.search(r"^ruff==(\S+)$", (ROOT / "requirements-test.txt").read_text(encoding="utf-8"), re.MULTILINE)
    hooks = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    used = re.search(r"ruff-pre-commit\n\s+rev: v(\S+)", hooks)
    assert pinned is not None
    assert used is not None
    assert used[1] == pinned[1]
