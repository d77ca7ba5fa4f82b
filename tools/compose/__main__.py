"""Start deploy/compose.yaml without Grafana by podman, run a job through PostgreSQL, and look at Prometheus.

Needs `make image-check` before, root, and podman with netavark, aardvark-dns and iptables. PostgreSQL and Prometheus
are stand-ins of Debian's packages, older than the images that the file names. The dashboard's queries are sent to
Prometheus in Grafana's place. No registry is used.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from PIL import Image

from tools.compose.panels import dashboard, queries, without_values
from tools.compose.project import Project, images
from tools.compose.stand_ins import ensure_stand_ins
from tools.image.storage import Storage

ALERTS = Path(__file__).resolve().parents[2] / "docs" / "alerts.yaml"
BUILT = "localhost/cache_dit_serving:check"
SERVER, PROMETHEUS = "http://127.0.0.1:3000", "http://127.0.0.1:9090"
STARTED = (("postgres",), ("folders", "server", "prometheus"))
"""Services in the order of their start: podman before 4.6 does not wait for `service_healthy`."""
REQUEST = {"prompt": "a red square 🟥", "seed": 7}


def sent(url: str, body: dict[str, Any] | None = None, accept: str = "application/json") -> bytes:
    """Return the answer to a GET, or to a POST of a body."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json", "Accept": accept}
    with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=30) as answer:
        content: bytes = answer.read()
        return content


def wait(what: str, reached: Callable[[], bool], within_s: float = 180) -> float:
    """Return the seconds until a state is reached; connections that fail count as not yet.

    Raises:
        TimeoutError: It is not reached in time.
    """
    began = time.monotonic()
    while True:
        try:
            if reached():
                return time.monotonic() - began
        except (OSError, subprocess.CalledProcessError):
            pass
        if time.monotonic() - began > within_s:
            raise TimeoutError(f"{what} is not reached in {within_s:.0f} s")
        time.sleep(0.5)


def check(project: Project) -> list[str]:
    """Start the services, print what they do, and return what is wrong."""
    for services in STARTED:
        project.compose("up", "-d", "--no-build", *services)
        if "postgres" in services:
            print(f"postgres is healthy after {wait('PostgreSQL', lambda: project.healthy('postgres')):.1f} s")
    print(f"server is healthy after {wait('the server', lambda: project.healthy('server')):.1f} s")
    return [*check_job(project), *check_prometheus(), *check_panels()]


def check_job(project: Project) -> list[str]:
    """Run one job, put another server in the first one's place, and read the job and its picture back from it."""
    job = json.loads(sent(f"{SERVER}/jobs", REQUEST))["id"]
    taken = wait("the job's end", lambda: state_of(job) in {"succeeded", "failed"})
    row = project.query(f"SELECT state FROM jobs WHERE id = '{job}'")
    print(f"the job is {row} in PostgreSQL ({project.query('SHOW server_encoding')}) after {taken:.1f} s")
    project.replace("server")
    wait("the server", lambda: project.healthy("server"))
    read_back, state = sent(f"{SERVER}/jobs/{job}/outputs/0"), state_of(job)
    twin = sent(f"{SERVER}/generate", REQUEST, accept="image/png")
    print(f"at the next server the job is {state}, and its output has {len(read_back)} bytes")
    return [
        *([] if row == "succeeded" else [f"the job is {row!r} in PostgreSQL"]),
        *([] if state == "succeeded" else [f"the job is {state!r} at the next server"]),
        *([] if pixels(read_back) == pixels(twin) else ["the job's picture is not that of /generate"]),
    ]


def check_prometheus() -> list[str]:
    """Wait for a scrape, and look at the alert rules and the series."""
    wait("a scrape", lambda: target()["health"] == "up", within_s=60)
    groups = prometheus("rules")["groups"]
    rules = [rule["name"] for group in groups for rule in group["rules"]]
    broken = [rule["name"] for group in groups for rule in group["rules"] if rule["health"] == "err"]
    expected = re.findall(r"- alert: (\w+)", ALERTS.read_text())
    series = prometheus("query?query=cache_dit_serving_queue_waiting")["result"]
    print(f"Prometheus: {target()['scrapeUrl']} is up, {len(rules)} rules, {len(series)} series of the queue")
    return [
        *([] if sorted(rules) == sorted(expected) else [f"rules {rules} where {expected} are expected"]),
        *([f"rules that fail: {broken}"] if broken else []),
        *([] if series else ["Prometheus has no series of the queue"]),
    ]


def check_panels() -> list[str]:
    """Draw with a speed and with a deadline, and look for the values of each panel of the dashboard.

    A rate needs two scrapes after the first request.
    """
    asked = queries(dashboard())

    def drawn() -> bool:
        for fields in ({"speed": "fast"}, {"deadline_s": 60.0}):
            sent(f"{SERVER}/generate", REQUEST | fields)
        return not without_values(asked, series_of)

    try:
        wait("a value in each panel", drawn, within_s=120)
    except TimeoutError:
        return [f"panels without values: {sorted(without_values(asked, series_of))}"]
    print(f"{len({title for title, _ in asked})} panels of the dashboard have values")
    return []


def series_of(expression: str) -> list[Any]:
    """Return the series that Prometheus has of an expression now."""
    found: list[Any] = prometheus(f"query?{urlencode({'query': expression})}")["result"]
    return found


def prometheus(path: str) -> Any:
    """Return the data of an answer of Prometheus."""
    return json.loads(sent(f"{PROMETHEUS}/api/v1/{path}"))["data"]


def target() -> dict[str, Any]:
    """Return Prometheus' one target.

    Raises:
        OSError: It has none yet.
    """
    targets: list[dict[str, Any]] = prometheus("targets")["activeTargets"]
    if not targets:
        raise OSError("no target")
    return targets[0]


def state_of(job: str) -> str:
    """Return the state of a job."""
    return str(json.loads(sent(f"{SERVER}/jobs/{job}"))["state"])


def pixels(file: bytes) -> tuple[tuple[int, int], bytes]:
    """Return the size and the pixels of a picture."""
    with Image.open(io.BytesIO(file)) as picture:
        return picture.size, picture.tobytes()


def free(port: int) -> bool:
    """Return whether nothing listens on a port of this machine."""
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) != 0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.compose", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("~/.cache/cache-dit-serving-image").expanduser())
    storage = Storage(parser.parse_args().folder)
    missing = [name for name in ("buildah", "podman", "runc", "mmdebstrap") if shutil.which(name) is None]
    if missing:
        sys.exit(f"make compose-check needs {', '.join(missing)}")
    if not storage.has(BUILT):
        sys.exit("make compose-check needs the image of `make image-check`")
    taken = [port for port in (3000, 9090) if not free(port)]
    if taken:
        sys.exit(f"make compose-check needs port {taken[0]}, which is taken")
    named = images()
    storage.run("podman", "tag", BUILT, f"localhost/{named['server']}")
    ensure_stand_ins(storage, f"docker.io/library/{named['postgres']}", f"docker.io/{named['prometheus']}")
    project = Project(storage)
    try:
        problems = check(project)
        if problems:
            raise RuntimeError("; ".join(problems))
    except BaseException:
        for service in ("postgres", "server", "prometheus"):
            print(project.logs(service))
        raise
    finally:
        project.compose("down", "-v", "-t", "20")


if __name__ == "__main__":
    main()
