"""The audit of the pins: its sources, and that none passes without having looked at every pin."""

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.server import ROOT
from tools.audit import Newest, newest, source_of

NOWHERE = "http://127.0.0.1:9"


@contextmanager
def answering(pages: dict[str, Any]) -> Iterator[str]:
    """A server of JSON pages by path; 404 elsewhere."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(200 if self.path in pages else 404)
            self.end_headers()
            self.wfile.write(json.dumps(pages.get(self.path)).encode())

        do_POST = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.server_port}"
        finally:
            running.shutdown()
            thread.join()


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
def test_a_source_must_know_a_release_with_vulnerabilities(pages: dict[str, Any], source: str | None) -> None:
    with answering(pages) as address:
        assert source_of(address, address) == source


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
    assert f"{NOWHERE}/pypi/NAME/VERSION/json" in ended.stderr
    assert f"{NOWHERE}/v1/query" in ended.stderr
    assert "Not looked at, 2: one==1, two==2" in ended.stderr
