"""The image run as a hardened container: ready, a picture, its user, its end."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.image.storage import Storage

HARDENED = ("--cap-drop", "all", "--security-opt", "no-new-privileges", "--read-only", "--tmpfs", "/tmp")
VARIABLES = (
    "BENTOML_HOME=/tmp/bentoml",
    "HOME=/tmp",
    "BENTOML_HOST=127.0.0.1",
    "CACHE_DIT_SERVING__OUTPUTS__ROOT=/tmp/outputs",
)


@dataclass(frozen=True)
class Run:
    """One container's figures, in seconds, and the user that it ran as."""

    uid: int
    ready_s: float
    picture_s: float
    stop_s: float
    version: str


def run_once(
    storage: Storage,
    image: str,
    port: int,
    user: str | None,
    *,
    ready_within_s: float = 180,
    further: Sequence[str] = (),
) -> Run:
    """Start a container, draw a picture, and end it by SIGTERM.

    Args:
        user: `uid:gid`, or none for the image's own.
        further: variables beside those of each run, `NAME=VALUE`.

    Raises:
        RuntimeError: It is not ready in time.
    """
    variables = [word for value in (*VARIABLES, f"PORT={port}", *further) for word in ("-e", value)]
    as_user = [] if user is None else ["--user", user]
    began = time.monotonic()
    name = storage.run("podman", "run", "-d", *HARDENED, *as_user, *variables, image)
    try:
        _wait_ready(storage, name, port, began + ready_within_s)
        ready = time.monotonic()
        _draw(port)
        drawn = time.monotonic()
        pid = storage.run("podman", "inspect", "--format", "{{.State.Pid}}", name)
        uid = int(Path(f"/proc/{pid}").stat().st_uid)
        version = _version(port)
        stopping = time.monotonic()
        storage.run("podman", "kill", "--signal", "TERM", name)
        storage.run("podman", "wait", name, timeout=60)
        return Run(uid, ready - began, drawn - ready, time.monotonic() - stopping, version)
    finally:
        storage.run("podman", "rm", "-f", name, check=False)


def _wait_ready(storage: Storage, name: str, port: int, until: float) -> None:
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5):
                return
        except OSError:
            if time.monotonic() > until:
                logs = subprocess.run(
                    ["podman", "logs", name], env=storage.environ, capture_output=True, text=True, check=False
                )
                raise RuntimeError(f"not ready in time:\n{logs.stdout[-2000:]}{logs.stderr[-2000:]}") from None
            time.sleep(0.2)


def _draw(port: int) -> None:
    body = json.dumps({"prompt": "a red square", "seed": 7}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/generate", body, {"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        if not json.load(answer)["images"]:
            raise RuntimeError("the answer holds no picture")


def _version(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10) as answer:
        return str(json.load(answer)["version"])
