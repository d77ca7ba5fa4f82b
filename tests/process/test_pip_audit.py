"""pip-audit in an environment of its own, over a stand-in for OSV: what it finds decides the audit's exit status."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.environments import empty_environment, install_requirements
from tests.support.pages import answering
from tools.audit import audited, source_of

NOWHERE = "http://127.0.0.1:9"
FAULTY = {("pip", "24.0"), ("faulty", "1.0")}
"""Releases that the stand-in knows a vulnerability of."""


def vulnerabilities(body: bytes) -> dict[str, Any]:
    """The answer of OSV to a query for one release; empty if it knows none."""
    query = json.loads(body)
    name, version = query["package"]["name"], query["version"]
    if (name, version) not in FAULTY:
        return {}
    fixed = [{"introduced": "0"}, {"fixed": "99"}]
    affected = {"package": {"name": name, "ecosystem": "PyPI"}, "ranges": [{"type": "ECOSYSTEM", "events": fixed}]}
    record = {"schema_version": "1.6.0", "modified": "2026-01-01T00:00:00Z", "published": "2026-01-01T00:00:00Z"}
    return {"vulns": [record | {"id": f"PYSEC-2026-{name}", "summary": "A fault.", "affected": [affected]}]}


@pytest.fixture(scope="module")
def pip_audit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of an environment with pip-audit."""
    folder = tmp_path_factory.mktemp("audit")
    (folder / "pip-audit.txt").write_text("pip-audit\n")
    python = empty_environment(folder / "environment")
    install_requirements(python, folder / "pip-audit.txt")
    return python


@pytest.fixture(scope="module")
def source() -> Iterator[list[str]]:
    """pip-audit's options for the stand-in."""
    with answering({"/v1/query": vulnerabilities}) as address:
        found = source_of(NOWHERE, address)
        assert found is not None
        yield found


def test_pins_without_vulnerabilities_pass(pip_audit: Path, source: list[str], tmp_path: Path) -> None:
    (tmp_path / "pins.txt").write_text("one==1.0\nfaulty==2.0\n")
    assert audited(pip_audit, source, [tmp_path / "pins.txt"]) == 0


def test_a_vulnerable_pin_of_any_file_fails_the_audit_and_is_named(
    pip_audit: Path, source: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "one.txt").write_text("one==1.0\n")
    (tmp_path / "two.txt").write_text("# why\nfaulty==1.0\n")
    assert audited(pip_audit, source, [tmp_path / "one.txt", tmp_path / "two.txt"]) == 1
    named = capfd.readouterr().out
    assert "PYSEC-2026-faulty" in named
    assert "99" in named, "the release without it"


def test_a_source_that_stops_answering_fails_the_audit(pip_audit: Path, tmp_path: Path) -> None:
    (tmp_path / "pins.txt").write_text("one==1.0\n")
    with answering({}) as address:
        lost = ["--vulnerability-service", "osv", "--osv-url", f"{address}/v1/query"]
        assert audited(pip_audit, lost, [tmp_path / "pins.txt"]) != 0
