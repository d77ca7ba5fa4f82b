"""cache_dit.serve, cache-dit's own server as last released, in an environment of its own below build/."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from cache_dit_serving.config.catalog import BUNDLE_ROOT

VERSION = "1.3.5"
REQUIREMENTS = BUNDLE_ROOT / "requirements.txt"
FOLDER = BUNDLE_ROOT / "build" / f"cache-dit-{VERSION}"
NEEDED = (f"cache-dit[serving]=={VERSION}", "accelerate", "protobuf", "sentencepiece")
"""The server, and the libraries that the embedded model's tokenizers and a fast load need."""
NAMED = ("cache-dit", "torch", "diffusers", "transformers", "fastapi", "uvicorn")
"""Packages whose versions the page names."""


def constraints(requirements: str) -> str:
    """Return this project's pins without cache-dit's, so that both servers run on the same libraries."""
    return "".join(line for line in requirements.splitlines(keepends=True) if not line.startswith("cache-dit=="))


def python() -> Path:
    """Return the Python of the environment, which is made at the first call: a minute, and the download of torch.

    Raises:
        SystemExit: pip cannot install the packages.
    """
    interpreter, done = FOLDER / "bin" / "python", FOLDER / ".installed"
    pins = constraints(REQUIREMENTS.read_text(encoding="utf-8"))
    if done.exists() and done.read_text(encoding="utf-8") == pins:
        return interpreter
    _run([sys.executable, "-m", "venv", "--clear", str(FOLDER)])
    (FOLDER / "constraints.txt").write_text(pins, encoding="utf-8")
    pip = [str(interpreter), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    # torch first and by its exact pin, as in the Makefile: pip then takes a CPU build that lies beside the index.
    _run([*pip, *(line for line in pins.splitlines() if line.startswith("torch=="))])
    _run([*pip, "--constraint", str(FOLDER / "constraints.txt"), *NEEDED])
    done.write_text(pins, encoding="utf-8")
    return interpreter


def versions(interpreter: Path) -> str:
    """Return the versions of the environment's packages, in one line."""
    code = (
        "import sys; from importlib.metadata import version\n"
        "print(*(f'{name} {version(name)}' for name in sys.argv[1:]), sep=', ')"
    )
    read = subprocess.run([interpreter, "-c", code, *NAMED], capture_output=True, text=True, check=True)
    return read.stdout.strip()


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of a process without those that lead to this project's packages."""
    return {name: value for name, value in environ.items() if name not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}


def _run(command: list[str]) -> None:
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment(os.environ))
    if ended.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{ended.stderr[-4000:]}")
