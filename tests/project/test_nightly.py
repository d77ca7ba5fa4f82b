"""The nightly run: its parts, and that none of them passes without having looked."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from tests.support.server import ROOT

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def planned(*variables: str) -> subprocess.CompletedProcess[str]:
    """Return the lines that `make nightly` would run."""
    words = ["make", "--dry-run", f"PYTHON={sys.executable}", *variables, "nightly"]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=180, check=True)


def test_the_nightly_has_every_part_and_goes_on_after_one_that_fails() -> None:
    lines = planned().stdout
    assert "--keep-going" in lines
    for part in ("benchmarks.soak", "CONFORMANCE_EXAMPLES=400 CONFORMANCE_KEYS=1", "tools.audit"):
        assert part in lines, part
    whole = [line for line in lines.splitlines() if "-m pytest" in line and "-m " not in line.partition("pytest")[2]]
    assert whole, "all tests, those that run apart too"


def test_the_image_and_the_site_are_made_where_their_tools_are() -> None:
    found = planned("site-tools=sh", "image-check-tools=sh", "compose-check-tools=sh")
    for part in ("mkdocs build --strict", "-m tools.image", "-m tools.compose"):
        assert part in found.stdout, part
    assert "left out" not in found.stderr


def test_a_part_whose_tools_are_missing_is_left_out_by_name() -> None:
    found = planned("site-tools=sh no-such-tool", "image-check-tools=sh", "compose-check-tools=sh no-tool nor-this")
    assert "-m tools.image" in found.stdout
    assert "mkdocs build" not in found.stdout
    assert "-m tools.compose" not in found.stdout
    assert found.stderr.splitlines() == [
        "left out: site (lacks no-such-tool)",
        "left out: compose-check (lacks no-tool nor-this)",
    ]


@pytest.mark.skipif(os.geteuid() != 0, reason="root has all that it needs")
def test_root_needs_no_other_name() -> None:
    assert "-m tools.image" in planned("image-check-tools=root").stdout
