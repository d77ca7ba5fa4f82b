"""The audit of the pins: its sources, and that none passes without having looked at every pin."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.pages import answering
from tests.support.server import ROOT
from tools import audit
from tools.audit import PYPI, REQUIREMENTS, Newest, newest, source_of

NOWHERE = "http://127.0.0.1:9"


@pytest.mark.parametrize(
    ("pages", "source"),
    [
        ({"/pypi/pip/24.0/json": {"vulnerabilities": [{"id": "PYSEC-1"}]}}, "pypi"),
        ({"/v1/query": {"vulns": [{"id": "PYSEC-1"}]}}, "osv"),
        ({"/pypi/pip/24.0/json": {"vulnerabilities": []}, "/v1/query": {}}, None),
        ({}, None),
    ],
    ids=["PyPI", "OSV", "neither knows the release", "a mirror without data"],
)
def test_a_source_must_know_a_release_with_vulnerabilities(
    pages: dict[str, Any], source: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with answering(pages) as address:
        monkeypatch.setattr(audit, "PYPI", address)
        options = source_of(address, address)
    assert (None if options is None else options[1]) == source


def test_a_copy_of_pypi_is_no_source_since_pip_audit_reads_pypi_alone() -> None:
    with answering({"/pypi/pip/24.0/json": {"vulnerabilities": [{"id": "PYSEC-1"}]}}) as address:
        assert source_of(address, NOWHERE) is None


def test_every_file_of_pins_that_reaches_an_image_is_audited() -> None:
    tools = {ROOT / f"requirements-{name}.txt" for name in ("test", "docs")}
    assert set(REQUIREMENTS) == set(ROOT.glob("requirements*.txt")) - tools


def test_newest_releases_are_looked_up_and_others_are_named() -> None:
    pages = {
        "/pypi/clean/json": {"info": {"version": "2"}, "vulnerabilities": []},
        "/pypi/faulty/json": {"info": {"version": "3"}, "vulnerabilities": [{"id": "PYSEC-1"}]},
        "/pypi/older/json": {"info": {"version": "9"}, "vulnerabilities": []},
    }
    with answering(pages) as address:
        found = newest({"clean": "2", "faulty": "3", "older": "8", "missing": "1"}, address)
    assert found == Newest(["clean==2"], {"faulty==3": ["PYSEC-1"]}, ["older==8", "missing==1"])


def test_an_audit_without_data_fails_and_names_what_it_needs(tmp_path: Path) -> None:
    (tmp_path / "pins.txt").write_text("one==1\ntwo==2\n")
    command = [sys.executable, "-m", "tools.audit", "--requirements", str(tmp_path / "pins.txt")]
    ended = subprocess.run(
        [*command, "--pypi", NOWHERE, "--osv", NOWHERE],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert ended.returncode == 1
    assert f"{PYPI}/pypi/NAME/VERSION/json" in ended.stderr
    assert f"{NOWHERE}/v1/query" in ended.stderr
    assert "Not looked at, 2: one==1, two==2" in ended.stderr
