"""The image's labels, by the names of the Open Container Initiative."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import yaml

PREFIX = "org.opencontainers.image."
SOURCE = "https://git.example.com/team/cache-dit-serving"
"""Stands in docs/deploy.md for the address of your repository."""


def image_labels(root: Path, source: str) -> dict[str, str]:
    """Return the Bento's labels, and from which source and revision it was made.

    Args:
        source: Address of the repository, which the repository does not know.
    """
    labels: dict[str, str] = yaml.safe_load((root / "bentofile.yaml").read_text(encoding="utf-8"))["labels"]
    revision = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=root, check=True, capture_output=True, text=True, timeout=30
    ).stdout.strip()
    return labels | {f"{PREFIX}revision": revision, f"{PREFIX}source": source}


def missing_labels(expected: dict[str, str], inspected: dict[str, Any]) -> list[str]:
    """Return the labels that an image has not, or with another value, as lines.

    Args:
        inspected: What `podman image inspect` prints of the image.
    """
    given = inspected.get("Labels") or {}
    return [
        f"label {name} is {given.get(name)!r} where {value!r} is expected"
        for name, value in expected.items()
        if given.get(name) != value
    ]
