"""The balancer's configuration: valid, and matched to the server's settings and routes."""

from __future__ import annotations

import re
import subprocess

from cache_dit_serving.api.routes import METRICS, OPERATIONS
from cache_dit_serving.config.settings import Limits
from tests.support.balancer import CONFIGURATION, needs_haproxy

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
