"""`/metrics` over real HTTP: as many series as there are routes, whatever clients ask for."""

from __future__ import annotations

import http.client
import json
import platform
import re
from importlib.metadata import version
from typing import Any

import pytest
import yaml
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as plain

from cache_dit_serving.api.matching import UNKNOWN_ROUTE
from cache_dit_serving.api.routes import OPERATIONS
from tests.support.answers import metric
from tests.support.jobs import ended, submitted
from tests.support.server import ROOT, Server

OPENMETRICS = "application/openmetrics-text"
METRIC = re.compile(r"(?:cache_dit_serving|bentoml_service)_[a-z_]+")
LABEL = re.compile(r'(\w+)(?:=~|!~|!=|=)"')
BY = re.compile(r"\bby \(([^)]*)\)")
LEGEND = re.compile(r"\{\{(\w+)\}\}")
ENDPOINT = re.compile(r'endpoint="([^"]*)"')
SELECTOR = re.compile(r"(cache_dit_serving_[a-z_]+)(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)(=~|!~|!=|=)"([^"]*)"')
OF_KUBERNETES = "namespace"
"""Label that the Prometheus operator adds to what it scrapes."""
OF_FLOORS = "cache_dit_serving_speed_lowered"
"""Servers that have floors alone have it; tests/http/test_quality.py meets it on one."""


def ask(server: Server, target: str, method: str = "GET") -> int:
    """The status for a request target sent as it stands."""
    connection = http.client.HTTPConnection(server.url.removeprefix("http://"), timeout=60)
    connection.putrequest(method, target, skip_accept_encoding=True)
    connection.endheaders()
    status = connection.getresponse().status
    connection.close()
    return status


def test_paths_that_clients_make_up_add_no_series(server: Server) -> None:
    for target in ("/nowhere", "/outputs/none.png", "/static_content/none.js"):
        assert ask(server, target) == 404
    before = server.get("/metrics").text
    for number in range(100):
        assert ask(server, f"/made-up/{number}") == 404
        assert ask(server, f"/outputs/{number}.png") == 404
        assert ask(server, f"/static_content/{number}") == 404
    for target in ("/x%00y", "/x%0aFAKE%20LINE", "/" + "z" * 60_000, "/generate/", "/outputs/%2e%2e/%2e%2e/etc/passwd"):
        assert ask(server, target) in (400, 404, 405)
    assert ask(server, "/nowhere", "PURGE") == 404
    assert ask(server, "/generate", "PROPFIND") == 405
    after = server.get("/metrics").text
    assert "\0" not in after
    assert set(ENDPOINT.findall(after)) <= {UNKNOWN_ROUTE, *(operation.route for operation in OPERATIONS)}
    # One status more for /generate and for unknown paths: a counter and a histogram each.
    assert len(after) - len(before) < 20_000


def test_series_are_there_before_the_first_event(server: Server) -> None:
    for name, labels in {
        "build_info": {"diffusers": version("diffusers"), "python": platform.python_version()},
        "workers": {"state": "ready"},
        "max_queue": {},
    }.items():
        assert metric(server, f"cache_dit_serving_{name}", **labels) >= 1
    for name, labels in {
        "workers": {"state": "failed"},
        "jobs": {"state": "expired"},
        "stalls_total": {},
        "out_of_memory_total": {},
        "http_responses_total": {"route": "/compare", "status": "504"},
        "request_seconds_count": {"route": "/loras/{path}"},
        "generations_total": {"outcome": "out_of_memory", "speed": "custom"},
        "images_total": {"engaged": "false", "reason": "off", "speed": "high"},
        "webhooks_total": {"outcome": "given_up"},
    }.items():
        [line] = [
            line
            for line in server.get("/metrics").text.splitlines()
            if re.match(rf"cache_dit_serving_{name}[{{ ]", line)
            and all(f'{key}="{value}"' in line for key, value in labels.items())
        ]
        assert line.endswith(" 0.0")


def test_answers_are_counted_by_route_and_status(server: Server) -> None:
    def counted() -> list[float]:
        return [
            metric(server, "cache_dit_serving_http_responses_total", route="/generate", status="200"),
            metric(server, "cache_dit_serving_http_responses_total", route="/generate", status="400"),
            metric(server, "cache_dit_serving_request_seconds_count", route="/generate"),
        ]

    before = counted()
    server.generate(num_inference_steps=2)
    server.generate(widht=96)
    # An answer is counted once its last byte is sent.
    server.wait_for(lambda _: [after - earlier for after, earlier in zip(counted(), before, strict=True)] == [1, 1, 2])


def test_jobs_are_counted_by_state(server: Server) -> None:
    def counted() -> float:
        return metric(server, "cache_dit_serving_jobs", state="succeeded")

    def listed(after: str | None = None) -> int:
        page = server.get("/jobs", params={"state": "succeeded", "limit": "100", "after": after}).json()
        return len(page["jobs"]) + (listed(page["next"]) if "next" in page else 0)

    assert ended(server, submitted(server, num_inference_steps=2))["state"] == "succeeded"
    server.wait_for(lambda _: counted() == listed() > 0)


def test_metrics_count_what_answers_say(server: Server) -> None:
    def counted() -> tuple[float, float, float, float]:
        return (
            metric(server, "cache_dit_serving_steps_total", kind="computed", speed="fast"),
            metric(server, "cache_dit_serving_steps_total", kind="cached", speed="fast"),
            metric(server, "cache_dit_serving_generations_total", outcome="succeeded", speed="fast"),
            metric(server, "cache_dit_serving_residual_diff_count", speed="fast"),
        )

    before = counted()
    answer = server.generate(seed=1, num_images=2, speed="fast", include_stats=True).json()
    diffs = sum(len(record["diffs"]) for image in answer["stats"]["cache_stats"] for record in image["block_lists"])
    report = answer["cache"]
    added = [after - earlier for after, earlier in zip(counted(), before, strict=True)]
    assert added == [report["computed_steps"], report["cached_steps"], 1, diffs]
    for stage in ("queue", "encode_prompt", "denoise", "decode", "encode_output"):
        assert metric(server, "cache_dit_serving_stage_seconds_count", stage=stage) > 0


def test_the_dashboard_asks_for_metrics_that_there_are(server: Server) -> None:
    for fields in ({"speed": "fast"}, {"deadline_s": 60.0}):
        server.generate(num_inference_steps=8, **fields)
    names = set(re.findall(r"^([a-z_]+)(?:\{| )", server.get("/metrics").text, re.M))
    dashboard = json.loads((ROOT / "docs" / "grafana-dashboard.json").read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    asked = set(METRIC.findall(" ".join(expressions)))
    for expression in expressions:
        assert expression.count('instance=~"$instance"') == len(METRIC.findall(expression))
    assert asked
    assert asked <= names
    labels: dict[str, set[str]] = {}
    for name, found in re.findall(r"^([a-z_]+)\{(.*)\} ", server.get("/metrics").text, re.M):
        labels.setdefault(name, {"instance"}).update(LABEL.findall(found))
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            known = set[str]().union(*(labels.get(name, {"instance"}) for name in METRIC.findall(target["expr"])))
            grouped = {label for group in BY.findall(target["expr"]) for label in group.split(", ")}
            assert grouped | set(LABEL.findall(target["expr"])) <= known, panel["title"]
            assert set(LEGEND.findall(target["legendFormat"])) <= grouped, panel["title"]
    page = (ROOT / "docs" / "metrics.md").read_text()
    assert all(panel["title"] in page for panel in dashboard["panels"])


def manifests() -> list[Any]:
    """Return the objects and patches of Kubernetes as their files have them, overlays too."""
    files = sorted((ROOT / "deploy" / "kubernetes").rglob("*.yaml"))
    return [each for file in files for each in yaml.safe_load_all(file.read_text())]


def values_of(key: str, within: Any) -> list[Any]:
    """Return the values of a key at any depth."""
    if isinstance(within, list):
        return [value for each in within for value in values_of(key, each)]
    if not isinstance(within, dict):
        return []
    return [value for name, value in within.items() if name == key] + values_of(key, [*within.values()])


def of_kind(kind: str) -> list[Any]:
    return [each for each in manifests() if each["kind"] == kind]


def test_kubernetes_asks_for_routes_that_a_ready_server_answers(server: Server) -> None:
    [port] = {port["name"] for each in of_kind("Deployment") for ports in values_of("ports", each) for port in ports}
    probes = values_of("httpGet", manifests())
    assert len(probes) >= 3
    assert {probe["port"] for probe in probes} == {port}
    assert {probe["path"]: server.get(probe["path"]).status_code for probe in probes} == {"/readyz": 200, "/livez": 200}


def test_prometheus_operator_scrapes_the_port_and_the_path_of_metrics(server: Server) -> None:
    [service] = of_kind("Service")
    ports = {port["name"]: port["targetPort"] for port in service["spec"]["ports"]}
    [container_port] = [port for each in of_kind("Deployment") for ports in values_of("ports", each) for port in ports]
    [monitor] = of_kind("ServiceMonitor")
    [endpoint] = monitor["spec"]["endpoints"]
    assert ports[endpoint["port"]] == container_port["name"]
    answer = server.get(endpoint["path"])
    assert "cache_dit_serving_build_info" in {family.name for family in plain(answer.text)}


def test_scaling_and_alerts_ask_for_series_that_a_server_has(server: Server) -> None:
    queries = values_of("query", of_kind("ScaledObject"))
    rules = yaml.safe_load((ROOT / "docs" / "alerts.yaml").read_text())
    alerts = values_of("expr", rules)
    assert len(queries) == 2
    assert len(alerts) == 9
    series: dict[str, list[dict[str, str]]] = {}
    for family in plain(server.get("/metrics").text):
        for sample in family.samples:
            series.setdefault(sample.name, []).append(sample.labels)
    for expression in queries + alerts:
        selectors = SELECTOR.findall(expression)
        assert selectors, expression
        grouped = {label for group in BY.findall(expression) for label in group.split(", ")}
        for name, written in selectors:
            if name == OF_FLOORS:
                continue
            matchers = [each for each in MATCHER.findall(written) if each[0] != OF_KUBERNETES]
            found = [
                labels
                for labels in series.get(name, [])
                if all(label in labels for label, *_ in matchers)
                and all(labels[label] == value for label, sign, value in matchers if sign == "=")
            ]
            assert found, f"no series of {name} {written} for {expression}"
            assert grouped <= {"instance", *found[0]}, f"no labels {grouped} of {name} for {expression}"


@pytest.mark.parametrize(
    ("accept", "media_type", "ends"),
    [
        ("", "text/plain; version=0.0.4; charset=utf-8", "\n"),
        ("text/plain;version=0.0.4;q=0.5,*/*;q=0.1", "text/plain; version=0.0.4; charset=utf-8", "\n"),
        (f"{OPENMETRICS};version=1.0.0,text/plain;version=0.0.4;q=0.5", OPENMETRICS, "# EOF\n"),
    ],
)
def test_a_scraper_gets_the_version_that_it_asks_for(server: Server, accept: str, media_type: str, ends: str) -> None:
    answer = server.get("/metrics", headers={"Accept": accept})
    assert answer.headers["Content-Type"].startswith(media_type)
    assert answer.text.endswith(ends)
    read = openmetrics if "openmetrics" in media_type else plain
    names = {family.name for family in read(answer.text)}
    assert {"cache_dit_serving_generations", "bentoml_service_request"} <= names
