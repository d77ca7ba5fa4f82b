"""Package versions, which must be equal on every machine of a group."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata

from cache_dit_serving import __version__

PACKAGES = ("torch", "diffusers", "transformers", "cache-dit")


def versions() -> dict[str, str]:
    """Return the versions of this server and of the packages in `PACKAGES`."""
    return {"cache-dit-serving": __version__} | {package: metadata.version(package) for package in PACKAGES}


def differing(others: Mapping[str, str]) -> str | None:
    """Return a sentence about the first package whose version differs on another machine; None if all are equal."""
    for package, version in versions().items():
        if others.get(package) != version:
            return f"this node has {package} {others.get(package, 'in no version')}, and the server has {version}"
    return None
