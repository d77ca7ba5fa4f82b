"""Copies of the embedded model's folder, to be broken: the weights are links, as in the hub's cache."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file

from cache_dit_serving.pipeline.load import EMBEDDED_FOLDER

WEIGHTS = "diffusion_pytorch_model"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


def linked(folder: Path) -> Path:
    """Copy the embedded model; its weights become links."""

    def copy(source: str, target: str) -> None:
        if source.endswith(".safetensors"):
            Path(target).symlink_to(source)
        else:
            shutil.copy(source, target)

    return Path(shutil.copytree(EMBEDDED_FOLDER, folder, copy_function=copy))


def replace(file: Path, contents: bytes) -> None:
    """Put a file in the place of another one or of a link."""
    file.unlink(missing_ok=True)
    file.write_bytes(contents)


def edit(file: Path, change: Callable[[dict[str, Any]], Mapping[str, Any]]) -> None:
    """Change a JSON file by a function of its object."""
    replace(file, json.dumps(change(json.loads(file.read_text()))).encode())


def tensors_of(file: Path) -> dict[str, Any]:
    """Tensors of a safetensors file."""
    with safe_open(file, "pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (it is no mapping)


def save(file: Path, tensors: dict[str, Any], metadata: dict[str, str] | None = None) -> None:
    file.unlink(missing_ok=True)
    save_file(tensors, file, metadata={"format": "pt"} | (metadata or {}))


def sharded(component: Path, stem: str = WEIGHTS, variant: str = "") -> list[Path]:
    """Split a component's one file of weights into two shards and an index; returns the shards."""
    dotted = f".{variant}" if variant else ""
    whole = component / f"{stem}.safetensors"
    tensors = tensors_of(whole)
    whole.unlink()
    names = sorted(tensors)
    halves = names[: len(names) // 2], names[len(names) // 2 :]
    files = [component / f"{stem}{dotted}-{number:05}-of-00002.safetensors" for number in (1, 2)]
    for file, half in zip(files, halves, strict=True):
        save(file, {name: tensors[name] for name in half})
    placed = {name: file.name for file, half in zip(files, halves, strict=True) for name in half}
    index = {"metadata": {}, "weight_map": placed}
    (component / f"{stem}.safetensors.index{dotted}.json").write_text(json.dumps(index))
    return files


def as_variant(folder: Path, variant: str, *components: str) -> None:
    """Rename the files of weights of some components, or of all of them, to those of a variant."""
    for file in sorted(folder.glob("*/*.safetensors")):
        if not components or file.parent.name in components:
            file.rename(file.with_name(f"{file.stem}.{variant}.safetensors"))
