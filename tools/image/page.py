"""The commands `docker run` of docs/image.md, run as they stand by podman."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.support.commands import commands_of
from tools.image.storage import Storage
from tools.image.weights import IMAGE, NAME

PAGE = Path(__file__).resolve().parents[2] / "docs" / "image.md"
PRINTED = {"config": NAME, "sbom.cdx.json": '"CycloneDX"', "licences.tsv": "torch\t"}
"""Text that a command prints, by the end of its words."""


def page_problems(storage: Storage) -> list[str]:
    """Run each command in the image with weights; return those that fail or print something else, as lines."""
    problems = []
    for words in commands_of(PAGE, "docker"):
        if words[1] != "run":
            continue
        command = ["podman", *(IMAGE if word == "IMAGE" else word for word in words[1:])]
        done = subprocess.run(command, env=storage.environ, capture_output=True, text=True, timeout=180, check=False)
        if done.returncode != 0 or PRINTED[words[-1].rpartition("/")[2]] not in done.stdout:
            problems.append(f"{' '.join(words)}: {done.returncode}, {done.stdout[-200:]}{done.stderr[-500:]}")
    return problems
