"""The Compose files: valid, and matched to the server's settings, routes and metrics."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from bentoml._internal.configuration.containers import BentoMLContainer

from cache_dit_serving import __version__
from cache_dit_serving.config.reading import Resolved, resolve
from tests.support.commands import commands_of, lines_of
from tests.support.promtool import needs_promtool
from tests.support.server import ROOT

FOLDER = ROOT / "deploy"
FILES = ("compose.yaml", "compose.gpu.yaml", "compose.keys.yaml")
PREFIX = "CACHE_DIT_SERVING__"
VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*)|:\?[^}]*)?\}")
SECRETS = {"POSTGRES_PASSWORD": "secret", "GRAFANA_PASSWORD": "another"}


def substituted(value: Any) -> Any:
    """A value with its variables, which Compose replaces in what it has read."""
    if isinstance(value, dict):
        return {key: substituted(each) for key, each in value.items()}
    if isinstance(value, list):
        return [substituted(each) for each in value]
    if not isinstance(value, str):
        return value
    return VARIABLE.sub(lambda found: SECRETS.get(found[1], found[2] or ""), value)


def services(*files: str) -> dict[str, dict[str, Any]]:
    """The services of several files laid over each other as Compose does: mappings merged, volumes added up."""
    merged: dict[str, dict[str, Any]] = {}
    for file in files:
        for name, service in substituted(yaml.safe_load((FOLDER / file).read_text())["services"]).items():
            known = merged.setdefault(name, {})
            for key, value in service.items():
                before = known.get(key)
                if isinstance(before, dict):
                    known[key] = before | value
                else:
                    known[key] = [*before, *value] if key == "volumes" and before else value
    return merged


def resolved(*files: str) -> Resolved:
    return resolve(services(*files)["server"]["environment"])


def mounts(service: dict[str, Any]) -> dict[str, str]:
    """Sources by target."""
    pairs = [
        (each["source"], each["target"]) if isinstance(each, dict) else tuple(each.split(":")[:2])
        for each in service["volumes"]
    ]
    return {target: source for source, target in pairs}


def merged(*files: str) -> dict[str, Any]:
    """Several files as one."""
    whole: dict[str, Any] = {}
    for file in files:
        for section, value in yaml.safe_load((FOLDER / file).read_text()).items():
            whole[section] = whole.get(section, {}) | value if isinstance(value, dict) else value
    return whole | {"services": services(*files)}


def test_the_files_and_what_they_make_together_are_of_the_compose_specification(tmp_path: Path) -> None:
    files = [FOLDER / file for file in FILES]
    for number, each in enumerate((FILES[:2], FILES[::2], FILES)):
        files.append(tmp_path / f"{number}.yaml")
        files[-1].write_text(yaml.safe_dump(merged(*each)))
        named = {volume for service in services(*each).values() for volume in mounts(service).values()}
        assert {volume for volume in named if "/" not in volume} == {*merged(*each)["volumes"]}
    checked = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", *files],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_page_starts_the_files_that_are_there_with_the_passwords_that_they_want(tmp_path: Path) -> None:
    commands = commands_of(ROOT / "docs" / "deploy.md", "docker")
    named = {word for words in commands if words[1] == "compose" for word in words if word.endswith(".yaml")}
    assert named == {f"deploy/{file}" for file in FILES[:2]}
    [line] = [line for line in lines_of(ROOT / "docs" / "deploy.md") if line.endswith("> deploy/.env")]
    (tmp_path / "deploy").mkdir()
    subprocess.run(["sh", "-ec", line], cwd=tmp_path, timeout=60, check=True)
    written = dict(each.split("=", 1) for each in (tmp_path / "deploy" / ".env").read_text().splitlines())
    assert written.keys() == SECRETS.keys()
    assert min(map(len, written.values())) >= 32


@pytest.mark.parametrize(
    ("files", "config"),
    [(FILES[:1], "embedded"), (FILES[:2], "qwen-image"), (FILES, "qwen-image")],
    ids=["cpu", "gpu", "keys"],
)
def test_each_variable_is_a_setting(files: tuple[str, ...], config: str) -> None:
    variables, read = services(*files)["server"]["environment"], resolved(*files)
    assert read.name == config
    set_by_variables = {origin for origin in read.origins.values() if origin.startswith(PREFIX)}
    assert set_by_variables == {variable for variable in variables if variable.startswith(PREFIX)}
    assert all(isinstance(value, str) for value in variables.values())
    assert read.settings.server.has_keys == (FILES[2] in files)


def test_the_gpus_are_those_that_the_server_takes() -> None:
    settings, server = resolved(*FILES).settings, services(*FILES)["server"]
    [device] = server["deploy"]["resources"]["reservations"]["devices"]
    assert device["count"] == settings.server.workers * settings.gpus_per_worker


def test_the_server_may_drain_and_keeps_its_jobs_in_the_database_beside_it() -> None:
    settings, every = resolved(FILES[0]).settings, services(FILES[0])
    assert every["server"]["stop_grace_period"] == f"{(settings.server.drain_s or 0) + 10:.0f}s"
    assert settings.limits.max_step_s <= settings.limits.max_request_s
    database = urlsplit(str(settings.jobs.database))
    given = every["postgres"]["environment"]
    assert database.hostname == "postgres"
    assert (database.username, database.password, database.path) == (
        given["POSTGRES_USER"],
        given["POSTGRES_PASSWORD"],
        f"/{given['POSTGRES_DB']}",
    )
    assert {*every["postgres"]["networks"]} < {*every["server"]["networks"]}


def test_a_password_that_is_missing_stops_the_start() -> None:
    text = (FOLDER / FILES[0]).read_text()
    named = [found for found in VARIABLE.finditer(text) if found[1] in SECRETS]
    assert len(named) == 3
    assert all(":?" in found[0] for found in named)


@pytest.mark.parametrize("files", [FILES[:1], FILES], ids=["cpu", "all"])
def test_each_folder_that_the_server_writes_to_is_writable(files: tuple[str, ...]) -> None:
    server, folders = services(*files)["server"], services(*files)["folders"]
    variables = server["environment"]
    assert server["read_only"]
    volumes = {target for target, source in mounts(server).items() if not source.startswith(".")}
    assert volumes == {*mounts(folders)} == {*folders["command"]}, "a new volume is root's"
    assert folders["entrypoint"] == ["chown", "1034:1034"]
    writable = [*volumes, *(each.split(":")[0] for each in server["tmpfs"])]
    written = [str(resolved(*files).settings.outputs.root)]
    written += [variables[name] for name in ("BENTOML_HOME", "HOME", "HF_HOME") if name in variables]
    for folder in written:
        assert any(PurePosixPath(folder).is_relative_to(each) for each in writable), folder


def test_nothing_is_published_beyond_this_machine() -> None:
    published = [port for service in services(*FILES).values() for port in service.get("ports", ())]
    assert sorted(published) == ["127.0.0.1:3000:3000", "127.0.0.1:3001:3000", "127.0.0.1:9090:9090"]
    assert yaml.safe_load((FOLDER / FILES[0]).read_text())["networks"]["storage"] == {"internal": True}


def test_containers_run_without_capabilities() -> None:
    for name, service in services(*FILES).items():
        assert service["security_opt"] == ["no-new-privileges:true"]
        if name != "postgres":  # whose entrypoint starts as root, and takes the volume for its user
            assert service["read_only"]
            assert service["cap_drop"] == ["ALL"]
            assert service.get("cap_add", []) == (["CHOWN"] if name == "folders" else [])


def test_files_that_are_mounted_are_there() -> None:
    for service in services(*FILES[:2]).values():
        for source in mounts(service).values() if "volumes" in service else ():
            assert not source.startswith(".") or (FOLDER / source).is_file(), source


def test_prometheus_asks_the_server_and_reads_the_alert_rules() -> None:
    config = yaml.safe_load((FOLDER / "compose" / "prometheus.yaml").read_text())
    [job] = config["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"server:{BentoMLContainer.http.port.get()}"]}]
    assert "metrics_path" not in job, "it is /metrics, as the server's"
    mounted = mounts(services(FILES[0])["prometheus"])
    [rules] = config["rule_files"]
    assert (FOLDER / mounted[f"/etc/prometheus/{rules}"]).resolve() == ROOT / "docs" / "alerts.yaml"


@needs_promtool
def test_prometheus_takes_its_configuration(tmp_path: Path) -> None:
    for target, source in mounts(services(FILES[0])["prometheus"]).items():
        if source.startswith("."):
            shutil.copy(FOLDER / source, tmp_path / PurePosixPath(target).name)
    done = subprocess.run(
        ["promtool", "check", "config", tmp_path / "prometheus.yml"],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "9 rules found" in done.stdout


def test_grafana_has_the_dashboard_and_its_source() -> None:
    [source] = yaml.safe_load((FOLDER / "compose" / "grafana-datasources.yaml").read_text())["datasources"]
    [provider] = yaml.safe_load((FOLDER / "compose" / "grafana-dashboards.yaml").read_text())["providers"]
    assert source["url"] == "http://prometheus:9090"
    assert source["isDefault"]
    dashboards = [
        json.loads((FOLDER / file).read_text())
        for target, file in mounts(services(FILES[0])["grafana"]).items()
        if PurePosixPath(target).is_relative_to(provider["options"]["path"])
    ]
    [dashboard] = dashboards
    [variable] = [each for each in dashboard["templating"]["list"] if each["type"] == "datasource"]
    assert variable["query"] == source["type"]


@needs_promtool
def test_prometheus_takes_each_query_of_the_dashboard(tmp_path: Path) -> None:
    dashboard = json.loads((ROOT / "docs" / "grafana-dashboard.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    written = [each.replace("$__rate_interval", "1m").replace("$instance", ".*") for each in queries]
    rules = [{"record": f"query_{number}", "expr": query} for number, query in enumerate(written)]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run(
        ["promtool", "check", "rules", tmp_path / "rules.yaml"],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(queries)} rules found" in done.stdout


def test_the_image_is_of_this_version() -> None:
    every = services(*FILES)
    assert {every[name]["image"] for name in ("server", "folders")} == {f"cache_dit_serving:{__version__}"}
    assert not [service["image"] for service in every.values() if service["image"].endswith(":latest")]
