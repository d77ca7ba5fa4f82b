"""Files of a component's weights: their names, variants and headers. No tensor is read."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from cache_dit_serving.checkpoints.schemes import SCALES
from cache_dit_serving.model_folder.broken import BrokenFolder
from cache_dit_serving.safetensors_header import (
    PICKLES,
    SafetensorsHeader,
    UnreadableFile,
    read_header,
    refuse_pickle,
)

STEMS = {"diffusers": ("diffusion_pytorch_model",), "transformers": ("model",)}
"""Beginning of the names of a component's files of weights, by library."""
ALL_STEMS = ("model", "diffusion_pytorch_model")
PLAIN = ""
"""Variant of the files without one in their names."""
SHOWN = 3
"""Number of names that a message lists."""
PACKED = frozenset({"I8", "U8"})
"""Types of quantised weights, which mean nothing without the quantisation's configuration."""
AGAIN = "download it again"
DANGLING = "is a link to a file that is not there; copy the folder with the files that its links point to"


@dataclass(frozen=True)
class Weights:
    """Weights of a component, by the headers of its files."""

    files: tuple[str, ...]
    """Names within the component's folder."""
    bytes_by_dtype: Mapping[str, int]
    """Size of all tensors in bytes, by their type's name in safetensors."""


def variants_of(names: Collection[str], library: str) -> frozenset[str]:
    """Return the variants that a component's files are there in; PLAIN among them for files without one."""
    stems = "|".join(STEMS.get(library, ALL_STEMS))
    form = re.compile(rf"(?:{stems})(?:\.(?P<variant>\w+))?(?:-\d{{5}}-of-\d{{5}})?\.safetensors")
    matches = filter(None, map(form.fullmatch, names))
    return frozenset(match["variant"] or PLAIN for match in matches)


def chosen_file(names: Collection[str], library: str, variant: str) -> str | None:
    """Return the file that the library loads: an index of shards, or the one file of weights; None: neither is there.

    diffusers 0.42 prefers an index; transformers 5 prefers the one file.
    """
    dotted = f".{variant}" if variant else ""
    stems = STEMS.get(library, ALL_STEMS)
    indices = [f"{stem}.safetensors.index{dotted}.json" for stem in stems]
    single = [f"{stem}{dotted}.safetensors" for stem in stems]
    wanted = [*indices, *single] if library == "diffusers" else [*single, *indices]
    return next((name for name in wanted if name in names), None)


def read_weights(component: Path, names: Collection[str], library: str, variant: str) -> Weights:
    """Return a component's weights, after checks of every file that the library would load.

    Args:
        names: names of the files in the component's folder.

    Raises:
        BrokenFolder: a file is not there, is damaged, or holds something else than its index or type says.
    """
    chosen = chosen_file(names, library, variant)
    if chosen is None:
        raise BrokenFolder(_without_weights(component.name, names, library, variant))
    tensors_of = _indexed(component, chosen, names) if chosen.endswith(".json") else {chosen: frozenset()}
    sizes: Counter[str] = Counter()
    quantized = _quantization(component) is not None
    for name in sorted(tensors_of):
        header = _header(component, name)
        if absent := sorted(tensors_of[name] - header.tensors.keys()):
            raise BrokenFolder(
                f"{component.name}/{name} lacks {counted(absent, 'tensor')} that {chosen} places there; the file and "
                f"the index are of two downloads: {AGAIN}, both"
            )
        _check_quantized(f"{component.name}/{name}", header, quantized)
        for entry in header.tensors.values():
            sizes[entry.dtype] += entry.size_bytes
    return Weights(tuple(sorted(tensors_of)), sizes)


def counted(names: Collection[str], noun: str) -> str:
    """Return the number of names and the first few of them, such as `2 tensors (a, b)`."""
    shown = ", ".join(name[:100] for name in islice(names, SHOWN)) + (", ..." if len(names) > SHOWN else "")
    return f"{len(names)} {noun}{'s' * (len(names) != 1)} ({shown})"


def _indexed(component: Path, index: str, names: Collection[str]) -> dict[str, frozenset[str]]:
    """Return the tensors that an index places in each of its files.

    Raises:
        BrokenFolder: the index is invalid, or files that it names are not there.
    """
    at = f"{component.name}/{index}"
    placed = read_json(component / index, at).get("weight_map")
    if not isinstance(placed, dict) or not placed or not all(isinstance(file, str) for file in placed.values()):
        raise BrokenFolder(f"{at} has no weight_map of tensors and files; {AGAIN}")
    tensors: dict[str, set[str]] = {}
    for tensor, file in placed.items():
        tensors.setdefault(file, set()).add(tensor)
    if outside := [file for file in tensors if Path(file).name != file]:
        raise BrokenFolder(f"{at} names a file outside of its folder: {outside[0][:100]}")
    if absent := sorted(tensors.keys() - set(names)):
        first, *others = absent
        more = f" and {counted(others, 'other file')}" if others else ""
        raise BrokenFolder(f"{component.name}/{first}{more} is not there, but {index} names it; {AGAIN}")
    return {file: frozenset(held) for file, held in tensors.items()}


def _without_weights(component: str, names: Collection[str], library: str, variant: str) -> str:
    if variant in variants_of(names, library):
        stem = STEMS.get(library, ALL_STEMS)[0]
        dotted = f".{variant}" if variant else ""
        return (
            f"{component}/{stem}.safetensors.index{dotted}.json is not there, but shards are; download it beside them"
        )
    if pickles := sorted(name for name in names if Path(name).suffix in PICKLES):
        try:
            refuse_pickle(pickles[0])
        except UnreadableFile as error:
            return f"{component}/{pickles[0]}: {error}"
    wanted = f"{STEMS.get(library, ALL_STEMS)[0]}.safetensors"
    others = sorted(name for name in names if name.endswith((".safetensors", ".gguf")))
    if others:
        return f"{component} has no {wanted}, only {counted(others, 'other file')} of weights; rename or convert it"
    return f"{component} has no weights: {component}/{wanted} is not there; {AGAIN}"


def _header(component: Path, name: str) -> SafetensorsHeader:
    if not (component / name).exists():
        raise BrokenFolder(f"{component.name}/{name} {DANGLING}")
    try:
        return read_header(component / name)
    except UnreadableFile as error:
        raise BrokenFolder(f"{component.name}/{name}: {error}") from error


def _check_quantized(at: str, header: SafetensorsHeader, quantized: bool) -> None:
    """Refuse quantised tensors without a configuration of their quantisation."""
    if quantized or header.metadata.keys() - {"format"}:
        return
    packed = [name for name, entry in header.tensors.items() if entry.dtype in PACKED and len(entry.shape) > 1]
    scales = [name for name in header.tensors if SCALES.search(name)]
    if packed or scales:
        raise BrokenFolder(
            f"{at} holds quantised weights ({(packed or scales)[0][:100]}), but config.json beside it has no "
            "quantization_config; take the model's full weights, and quantise them by `quantize`"
        )


def _quantization(component: Path) -> object | None:
    config = component / "config.json"
    return read_json(config, f"{component.name}/config.json").get("quantization_config") if config.is_file() else None


def read_json(file: Path, at: str) -> dict[str, Any]:
    """Return the JSON object in a file.

    Args:
        at: the file's name in messages.

    Raises:
        BrokenFolder: the file cannot be read, or holds no JSON object.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise BrokenFolder(f"{at} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise BrokenFolder(f"{at} is not valid JSON; {AGAIN}")
    return found
