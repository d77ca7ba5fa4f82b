"""The balancer's configuration: valid, and matched to the server's settings and routes."""

from __future__ import annotations

import re
import socket
import subprocess
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from cache_dit_serving.api.routes import METRICS, OPERATIONS
from cache_dit_serving.config.settings import Limits
from tests.support.balancer import CONFIGURATION, Balancer, balancing, needs_haproxy
from tests.support.commands import lines_of
from tests.support.server import ROOT

TEXT = CONFIGURATION.read_text()


def words(line: str) -> list[list[str]]:
    """The words after each line that begins so."""
    return [found.split() for found in re.findall(rf"^\s+{line} (.+)$", TEXT, re.MULTILINE)]


def seconds(timeout: str) -> float:
    [[value]] = words(f"timeout {timeout}")
    return float(value.removesuffix("s"))


@needs_haproxy
def test_haproxy_takes_it_without_a_warning() -> None:
    checked = subprocess.run(
        ["haproxy", "-c", "-f", CONFIGURATION], capture_output=True, text=True, timeout=30, check=False
    )
    assert checked.returncode == 0, checked.stderr
    assert "WARNING" not in checked.stdout + checked.stderr


@needs_haproxy
def test_a_caller_that_leaves_is_seen_to_leave_by_the_server_it_waits_for(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(20)
        port = server.getsockname()[1]
        with balancing(tmp_path, [port] * 3) as balancer:
            with socket.create_connection(("127.0.0.1", urlsplit(balancer.url).port or 0)) as caller:
                caller.sendall(b"POST /generate HTTP/1.1\r\nHost: host\r\nContent-Length: 2\r\n\r\n{}")
                asked = generation_at(server)
            with asked, suppress(ConnectionResetError):
                assert asked.recv(1) == b""


def generation_at(server: socket.socket) -> socket.socket:
    """The connection on which a generation came, with all of its request read; probes are answered."""
    while True:
        connection, _ = server.accept()
        connection.settimeout(20)
        request = connection.recv(65536)
        if request.startswith(b"POST /generate "):
            while not request.endswith(b"{}"):
                request += connection.recv(65536)
            return connection
        with connection:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")


def test_its_time_limits_are_longer_than_a_generation_and_shorter_for_headers() -> None:
    longest = Limits().max_request_s
    assert seconds("server") > longest
    assert seconds("client") > longest
    assert seconds("http-request") <= 10


def test_its_probe_and_the_metrics_are_routes_of_the_server() -> None:
    routes = {operation.route for operation in OPERATIONS}
    [probe] = words("http-check send meth GET uri")
    assert probe == ["/readyz"]
    assert {"/readyz", METRICS} <= routes
    assert f"deny_status 404 if {{ path {METRICS} }}" in TEXT


def test_what_is_sent_twice_begins_one_generation() -> None:
    """GET begins none, and jobs of one Idempotency-Key are one job."""
    [[_, *rule]] = words("http-request disable-l7-retry")
    allowed = " ".join(rule)
    assert allowed.startswith("METH_GET or { req.hdr(Idempotency-Key) -m found } { path ")
    paths = allowed.split("{ path ")[1].split(" }")[0].split()
    jobs = {operation.route for operation in OPERATIONS if operation.method == "POST" and operation.status == 202}
    with_key = {operation.route for operation in OPERATIONS if "Idempotency-Key" in operation.headers}
    assert jobs <= set(paths) <= with_key


def test_the_page_sends_the_words_with_which_servers_are_exchanged_under_load(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []
    monkeypatch.setattr(Balancer, "command", lambda _, words: sent.append(words))
    balancer = Balancer("", Path())
    balancer.drain(1)
    balancer.take_back(1)
    shown = [re.match(r'echo "(.+)" \| socat stdio (\S+)', line) for line in lines_of(ROOT / "docs" / "deploy.md")]
    assert [line[1] for line in shown if line] == sent
    assert {line[2] for line in shown if line} == {*re.findall(r"presetenv ADMIN_SOCKET (\S+)", TEXT)}
