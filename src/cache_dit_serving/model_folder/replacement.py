"""Weights in a folder that replace those of a loaded model: which files, and what their headers say."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from cache_dit_serving.model_folder.broken import BrokenFolder
from cache_dit_serving.model_folder.weights import PLAIN, counted, read_weights, variants_of
from cache_dit_serving.safetensors_header import TensorEntry, UnreadableFile, read_header


class Replacement(NamedTuple):
    """Weights for one component."""

    component: str
    files: tuple[Path, ...]
    tensors: Mapping[str, TensorEntry]


def folder_below(root: Path, name: str) -> Path:
    """Return a folder below another one.

    Raises:
        BrokenFolder: there is none of this name, or it leads elsewhere.
    """
    above = root.expanduser().resolve()
    found = (above / name).resolve()
    if not found.is_relative_to(above) or not found.is_dir():
        raise BrokenFolder("there is no such folder below model.reload_folder")
    return found


def replacements_in(folder: Path, root: Path, libraries: Mapping[str, str]) -> list[Replacement]:
    """Return the weights that a folder has for the components of a model, each in a folder of its name.

    Args:
        root: the operator's folder, which no file may lead out of.
        libraries: library by component, of those that have weights.

    Raises:
        BrokenFolder: there are none, or files are missing, damaged or lead elsewhere.
    """
    try:
        found = [
            _replacement(folder / name, root, library)
            for name, library in libraries.items()
            if (folder / name).is_dir()
        ]
    except OSError as error:
        raise BrokenFolder(f"the folder cannot be read: {error.strerror}") from error
    if not found:
        raise BrokenFolder(f"it has no folder of a component: {', '.join(libraries)}")
    return found


def _replacement(component: Path, root: Path, library: str) -> Replacement:
    names = frozenset(os.listdir(component))
    variants = variants_of(names, library)
    variant = PLAIN if PLAIN in variants or len(variants) != 1 else next(iter(variants))
    files = tuple(component / name for name in read_weights(component, names, library, variant).files)
    if outside := [file.name for file in files if not file.resolve().is_relative_to(root.expanduser().resolve())]:
        raise BrokenFolder(f"{component.name}/{outside[0]} is a link that leads out of model.reload_folder")
    tensors: dict[str, TensorEntry] = {}
    for file in files:
        try:
            header = read_header(file).tensors
        except UnreadableFile as error:
            raise BrokenFolder(f"{component.name}/{file.name}: {error}") from error
        if twice := sorted(tensors.keys() & header.keys()):
            raise BrokenFolder(f"{component.name} has {counted(twice, 'tensor')} in two files")
        tensors |= header
    return Replacement(component.name, files, tensors)
