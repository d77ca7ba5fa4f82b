"""Guess at a folder without a model_index.json: the kind of its contents, and the path to give in its place."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from cache_dit_serving.config.folder import INDEX

IN_HUB_CACHE = re.compile(r"models--(?P<owner>[\w.-]+?)--(?P<name>[\w.-]+)")
"""Folder of a model in the hub's cache."""
LORA_FILES = ("adapter_config.json", "pytorch_lora_weights.safetensors", "adapter_model.safetensors")
MANY = 1000
"""Number of entries of a folder that are looked at."""


def what_it_seems(folder: Path, names: list[str]) -> str:
    """Return the kind of a folder without an index, with the remedy; a phrase.

    Args:
        names: names in the folder.
    """
    if not names:
        return "it is empty"
    if cached := IN_HUB_CACHE.fullmatch(folder.name):
        hub_id = f"{cached['owner']}/{cached['name']}"
        return f"it is the hub's cache of {hub_id}; name the hub id, or the folder in its snapshots"
    if models := sorted(filter(None, map(IN_HUB_CACHE.fullmatch, names)), key=lambda match: match[0]):
        hub_id = f"{models[0]['owner']}/{models[0]['name']}"
        return f"it is a cache of the hub; set HF_HUB_CACHE to it, and name a model in it by its hub id, as {hub_id}"
    if (folder.parent / INDEX).is_file():
        return f"it is a component of the model in the folder above it{_of_class(folder)}; name that one"
    if any(name in names for name in LORA_FILES):
        return "it holds a LoRA; name it in model.loras (--lora-path), beside the model that it is for"
    if "config.json" in names:
        return f"it holds a single network{_of_class(folder)}, not a pipeline; name the folder of the whole model"
    if "modular_model_index.json" in names:
        return "it is a modular pipeline, which is not supported; take the model as save_pretrained saves it"
    if inner := next((name for name in names[:MANY] if (folder / name / INDEX).is_file()), None):
        return f"its folder {inner} has one; name that (model.subfolder)"
    if any((folder / name / "config.json").is_file() for name in names[:MANY]):
        return f"it has folders of components, but {INDEX} is missing; download that beside them"
    if checkpoint := _checkpoint_in(folder, names):
        return (
            f"it holds a checkpoint in a single file, {checkpoint}; name that file, and the model that completes it as "
            "model.base (--model-base)"
        )
    return "it must be a folder saved by save_pretrained"


def _checkpoint_in(folder: Path, names: list[str]) -> str | None:
    """Return the path of a file of weights in a folder, or in a folder of it, as ComfyUI keeps them; None: none."""
    suffixes = (".safetensors", ".gguf", ".ckpt")
    if found := sorted(name for name in names if name.endswith(suffixes)):
        return found[0]
    below = (file for name in names[:MANY] for file in sorted((folder / name).glob("*")) if (folder / name).is_dir())
    return next((f"{file.parent.name}/{file.name}" for file in below if file.name.endswith(suffixes)), None)


def _of_class(folder: Path) -> str:
    """Return the class that a component's configuration names, in brackets; empty if it names none."""
    try:
        config: Any = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        named = config.get("_class_name") or (config.get("architectures") or [None])[0]
    except (OSError, ValueError, AttributeError, LookupError, RecursionError):
        return ""
    return f" ({named[:100]})" if isinstance(named, str) else ""
