"""The order in which test processes take modules."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.server import ROOT
from tests.support.spread import next_of

CONFTEST = """
from tests.support.spread import SharingLast

def pytest_xdist_make_scheduler(config, log):
    return SharingLast(config, log)
"""
MODULE = """
import os, time

def test_it():
    time.sleep(0.05)
    with open(os.environ["TOOK"], "a") as file:
        file.write(f"{os.environ['PYTEST_XDIST_WORKER']} {__file__}\\n")
"""


@pytest.mark.parametrize(
    ("left", "sharing", "expected"),
    [
        (["tests/process/a", "tests/http/b", "tests/http/c"], True, "tests/http/b"),
        (["tests/http/b", "tests/process/a", "tests/http/c"], False, "tests/process/a"),
        (["tests/http/b", "tests/http/c"], False, "tests/http/b"),
        (["tests/process/a", "tests/jobs/b"], True, "tests/process/a"),
    ],
)
def test_each_process_takes_its_kind_as_long_as_there_is_one(left: list[str], sharing: bool, expected: str) -> None:
    assert next_of(left, sharing=sharing) == expected


def test_modules_that_share_servers_come_to_one_process(tmp_path: Path) -> None:
    for name in [*(f"http/test_shares_{each}" for each in range(4)), *(f"jobs/test_own_{each}" for each in range(20))]:
        module = tmp_path / "tests" / f"{name}.py"
        module.parent.mkdir(parents=True, exist_ok=True)
        module.write_text(MODULE)
    (tmp_path / "conftest.py").write_text(CONFTEST)
    took = tmp_path / "took"
    words = ["-q", "-n", "2", "--no-loadscope-reorder", "--rootdir", str(tmp_path), str(tmp_path / "tests")]
    environ = {"PATH": "", "PYTHONPATH": str(ROOT), "TOOK": str(took)}
    subprocess.run([sys.executable, "-m", "pytest", *words], cwd=tmp_path, env=environ, check=True, timeout=120)
    processes = {line.split()[0] for line in took.read_text().splitlines() if "/http/" in line}
    assert len(processes) == 1
    assert len(took.read_text().splitlines()) == 24
