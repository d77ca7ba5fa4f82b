"""Kubernetes objects as Kustomize renders them from deploy/kubernetes, where `kubectl` is installed."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.server import ROOT

FOLDER = ROOT / "deploy" / "kubernetes"
OVERLAYS = ("cpu", "one-gpu", "four-gpus", "replicas")
WEIGHTS = "weights"
OLDEST_MINOR = 27
"""Of kubectl 1: Debian 12 has 1.20, whose Kustomize knows no components."""
needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason=f"needs kubectl 1.{OLDEST_MINOR} or later")
Manifest = dict[str, Any]


@cache
def rendered(name: str) -> tuple[Manifest, ...]:
    """Return the objects of an overlay, or of `weights`."""
    return render(FOLDER / name if name == WEIGHTS else FOLDER / "overlays" / name)


def render(folder: Path) -> tuple[Manifest, ...]:
    """Return the objects of a folder with a kustomization."""
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0 and _minor_version() < OLDEST_MINOR:
        pytest.skip(f"needs kubectl 1.{OLDEST_MINOR}: this one is 1.{_minor_version()}")
    assert done.returncode == 0, done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


@cache
def _minor_version() -> int:
    """Return kubectl's minor version. Asked for where it fails: each call takes 0.2 s."""
    words = ["kubectl", "version", "--client", "--output", "json"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    return int(json.loads(done.stdout)["clientVersion"]["minor"].rstrip("+"))


def of_kind(name: str, kind: str) -> list[Manifest]:
    """Return the objects of one kind."""
    return [each for each in rendered(name) if each["kind"] == kind]


def pod(name: str) -> Manifest:
    """Return the pod that an overlay's Deployment, or the Job of `weights`, makes: its labels and `spec`."""
    [owner] = of_kind(name, "Job" if name == WEIGHTS else "Deployment")
    template = owner["spec"]["template"]
    return {"labels": template["metadata"]["labels"], "spec": template["spec"]}


def container(name: str) -> Manifest:
    """Return the pod's only container."""
    [only] = pod(name)["spec"]["containers"]
    assert isinstance(only, dict)
    return only


def environment(name: str, secrets: Mapping[str, str]) -> dict[str, str]:
    """Return the container's variables.

    Args:
        secrets: values of `SECRET/KEY`.
    """
    maps = {each["metadata"]["name"]: each["data"] for each in of_kind(name, "ConfigMap")}
    values: dict[str, str] = {}
    for source in container(name).get("envFrom", ()):
        values |= maps[source["configMapRef"]["name"]]
    for each in container(name).get("env", ()):
        if reference := each.get("valueFrom", {}).get("secretKeyRef"):
            values[each["name"]] = secrets[f"{reference['name']}/{reference['key']}"]
        else:
            values[each["name"]] = each["value"]
    return values


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Return True if a selector of labels selects a pod."""
    assert set(selector) <= {"matchLabels"}, "no expressions are read"
    return selector.get("matchLabels", {}).items() <= labels.items()
