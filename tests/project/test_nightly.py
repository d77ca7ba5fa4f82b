"""The nightly run: its parts, and that none of them passes without having looked."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from tests.support.server import ROOT


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_the_nightly_has_every_part_and_goes_on_after_one_that_fails() -> None:
    planned = subprocess.run(
        ["make", "--dry-run", "nightly"], cwd=ROOT, capture_output=True, text=True, timeout=180, check=True
    ).stdout
    assert "--keep-going" in planned
    for part in ("benchmarks.soak", "CONFORMANCE_EXAMPLES=400 CONFORMANCE_KEYS=1", "tools.audit"):
        assert part in planned, part
    whole = [line for line in planned.splitlines() if "-m pytest" in line and "-m " not in line.partition("pytest")[2]]
    assert whole, "all tests, those that run apart too"
