"""The image with a model's weights inside, built over the server's image and run without a network."""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from tools.image.container import HARDENED, VARIABLES
from tools.image.storage import Storage

DOCKERFILE = Path(__file__).resolve().parents[2] / "docker" / "weights.Dockerfile"
NAME = "offline-model"
IMAGE = "localhost/cache_dit_serving:with-weights"
_DRAW = """\
import json, sys, time, urllib.request
server = "http://127.0.0.1:3000"
until = time.monotonic() + 180
while True:
    try:
        urllib.request.urlopen(f"{server}/readyz", timeout=5)
        break
    except OSError:
        if time.monotonic() > until:
            sys.exit("not ready in time")
        time.sleep(0.2)
body = json.dumps({"prompt": "a red square", "seed": 7}).encode()
request = urllib.request.Request(f"{server}/generate", body, {"Content-Type": "application/json"})
images = json.load(urllib.request.urlopen(request, timeout=120))["images"]
info = json.load(urllib.request.urlopen(f"{server}/get_model_info", timeout=10))
print(info["configuration"], info["model"], len(images))
"""


@dataclass(frozen=True)
class OfflineRun:
    """One container without a network: its configuration and model, its pictures and its seconds."""

    configuration: str
    model: str
    images: int
    seconds: float
    interfaces: str


def build_with_weights(storage: Storage, image: str, model: Path) -> None:
    """Build the image with a model's folder in a layer over another image."""
    arguments = ("--build-arg", f"IMAGE={image}", "--build-arg", f"NAME={NAME}")
    storage.run(
        "buildah", "build", "--pull-never", "-f", str(DOCKERFILE), *arguments, "-t", IMAGE, str(model), timeout=600
    )


def run_offline(storage: Storage) -> OfflineRun:
    """Start the image without a network, and draw from within it.

    Raises:
        RuntimeError: It does not draw.
    """
    variables = [word for value in VARIABLES for word in ("-e", value)]
    began = time.monotonic()
    name = storage.run("podman", "run", "-d", "--network", "none", *HARDENED, *variables, IMAGE)
    try:
        drawn = subprocess.run(
            ["podman", "exec", name, "python", "-c", _DRAW],
            env=storage.environ, check=False, capture_output=True, text=True, timeout=400,
        )  # fmt: skip
        if drawn.returncode != 0:
            raise RuntimeError(f"{drawn.stderr[-1000:]}{storage.run('podman', 'logs', '--tail', '20', name)}")
        interfaces = storage.run("podman", "exec", name, "ls", "/sys/class/net")
        configuration, model, images = drawn.stdout.split()
        return OfflineRun(configuration, model, int(images), time.monotonic() - began, " ".join(interfaces.split()))
    finally:
        storage.run("podman", "rm", "-f", name, check=False)
