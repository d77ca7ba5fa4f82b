"""The image's bill of materials and its list of licences, which docker/setup.sh wrote while the image was built."""

from __future__ import annotations

import json
from pathlib import Path

from tools.licences.__main__ import PAGE, normalized

INSIDE = "app/.venv/share/sbom.cdx.json"
LIST = "app/.venv/share/licences.tsv"
ELSEWHERE = {"torchvision", "pip", "setuptools"}
"""Packages that docs/licences.md names beside its table, or that stand in some images alone."""
OF_CUDA = ("nvidia-", "cuda-", "triton")


def bill_problems(root: Path) -> list[str]:
    """Return what is wrong with the bill and the list of an image, as lines.

    Args:
        root: The image's file system.
    """
    # Here: to import the validator takes a second.
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    text = (root / INSIDE).read_text(encoding="utf-8")
    invalid = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if invalid is not None:
        return [f"{INSIDE} is not CycloneDX: {invalid}"]
    page = PAGE.read_text(encoding="utf-8")
    components = json.loads(text)["components"]
    names = {normalized(component["name"]) for component in components}
    print(f"{len(names)} packages in {INSIDE}, which is valid CycloneDX")
    unknown = sorted(name for name in names - ELSEWHERE if f"| `{name}` |" not in page)
    problems = [f"{name} is not in {PAGE.name}" for name in unknown if not name.startswith(OF_CUDA)]
    listed = [line.split("\t")[:2] for line in (root / LIST).read_text(encoding="utf-8").splitlines()]
    if sorted(listed) != sorted([component["name"], component["version"]] for component in components):
        problems.append(f"{LIST} and {INSIDE} name other packages")
    return problems
