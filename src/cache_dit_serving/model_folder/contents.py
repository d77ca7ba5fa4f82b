"""Check of a model's folder before anything is loaded, and its contents by the headers of its files."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import Any, NamedTuple

from cache_dit_serving.config.folder import INDEX
from cache_dit_serving.config.settings import ModelSettings
from cache_dit_serving.config.sources import Sources, UnusableSource
from cache_dit_serving.model_folder.broken import BrokenFolder
from cache_dit_serving.model_folder.classes import diffusers_version, has_class, has_module
from cache_dit_serving.model_folder.unindexed import what_it_seems
from cache_dit_serving.model_folder.variant import chosen_variant
from cache_dit_serving.model_folder.weights import (
    AGAIN,
    DANGLING,
    PLAIN,
    Weights,
    chosen_file,
    read_json,
    read_weights,
    variants_of,
)
from cache_dit_serving.safetensors_header import LFS_POINTER, OTHER_FORMATS

WITHOUT_WEIGHTS = re.compile(r".*(Tokenizer|TokenizerFast|Processor|ProcessorFast|Extractor|Scheduler|Backend|Config)")
"""Classes of components that are configured by small files alone."""
NETWORK = re.compile(r".*(Model|Transformer|Autoencoder|UNet|For[A-Z]\w+)")
NETWORK_CONFIG = "config.json"
"""File with the configuration of a network."""
SMALL_FILES = frozenset({".json", ".model", ".txt", ".jinja"})
"""Suffixes of the files of configurations and tokenizers."""
MOST_LFS_BYTES = 1024
"""Bound on the size of a Git LFS pointer, bytes, by its specification."""


class Component(NamedTuple):
    """A component of a model, as its index and its files describe it."""

    name: str
    library: str
    class_name: str
    weights: Weights | None
    """None: a tokenizer, a scheduler or the like, or weights that are not read."""


@dataclass(frozen=True)
class ModelFolder:
    """Contents of a model's folder."""

    pipeline_class: str
    components: tuple[Component, ...]
    variant: str | None
    """Variant of the weights to load: the setting's, or the only one that is there; None: files without one."""


class _Listed(NamedTuple):
    """A component in the index, and its files."""

    name: str
    library: str
    class_name: str
    files: frozenset[str]

    @property
    def is_network(self) -> bool:
        if WITHOUT_WEIGHTS.fullmatch(self.class_name) or self.class_name.endswith("Pipeline"):
            return False
        weights = variants_of(self.files, self.library) or chosen_file(self.files, self.library, PLAIN)
        return NETWORK_CONFIG in self.files or bool(weights) or NETWORK.match(self.class_name) is not None


def read_folder(
    folder: Path,
    *,
    variant: str | None = None,
    dtype: str = "bfloat16",
    pipeline_class: str | None = None,
    weights: bool = True,
    replaced: Collection[str] = (),
) -> ModelFolder:
    """Return a folder's contents, after checks of all that can be known from its small files and headers.

    Args:
        variant: variant of the weights to load; None: files without one, or else the only variant that is there.
        dtype: data type to load them as, which chooses among several variants.
        pipeline_class: class to load the folder by, in place of the one that it names.
        weights: False: the files of weights are not read.
        replaced: names of components that are loaded from elsewhere.

    Raises:
        BrokenFolder: the folder cannot be loaded.
    """
    with _readable():
        names = _names(folder, "the model's folder")
        if INDEX not in names:
            raise BrokenFolder(f"the model's folder has no {INDEX}: {what_it_seems(folder, names)}")
        _check_pointer(folder / INDEX, INDEX)
        index = read_json(folder / INDEX, INDEX)
        saved_by = index.get("_diffusers_version")
        found_class = _pipeline_class(index, pipeline_class, saved_by)
        listed = [_listed(folder, name, entry, saved_by) for name, entry in _entries(index) if name not in replaced]
        networks = [each for each in listed if each.is_network]
        for each in networks:
            _check_config(folder, each)
        chosen = chosen_variant({each.name: variants_of(each.files, each.library) for each in networks}, variant, dtype)
        components = []
        for each in listed:
            read = None
            if weights and each in networks:
                there = (chosen or PLAIN) in variants_of(each.files, each.library)
                read = read_weights(folder / each.name, each.files, each.library, chosen or PLAIN if there else PLAIN)
            components.append(Component(each.name, each.library, each.class_name, read))
        return ModelFolder(found_class, tuple(components), chosen if weights else variant)


def folder_of(path: str, model: ModelSettings) -> Path:
    """Return the folder of a model's pipeline: a path, or the folder in it that `subfolder` names.

    Raises:
        BrokenFolder: there is no such folder in it.
    """
    above = Path(path).expanduser()
    if model.subfolder is None:
        return above
    if not (above / model.subfolder).is_dir():
        inner = sorted(file.parent.name for file in above.glob(f"*/{INDEX}"))
        there = f"; there is {', '.join(inner[:5])}" if inner else ""
        raise BrokenFolder(f"it has no folder {model.subfolder} (model.subfolder){there}")
    return above / model.subfolder


def read_model(folder: Path, model: ModelSettings, sources: Sources) -> ModelFolder:
    """Return the contents of a folder that is loaded by these settings.

    Args:
        sources: places of the model; weights that come from elsewhere are not looked for in the folder.

    Raises:
        BrokenFolder: the folder cannot be loaded.
    """
    return read_folder(
        folder,
        variant=model.variant,
        dtype=model.dtype,
        pipeline_class=model.pipeline_class,
        weights=model.weights == "saved" and sources.whole is None,
        replaced=sources.replaced,
    )


def read_component_folders(sources: Sources) -> dict[str, Weights]:
    """Return the weights of components that come from folders of their own, by component, after their checks.

    Raises:
        UnusableSource: a file is not there, is damaged, or holds something else than its index or type says.
    """
    found: dict[str, Weights] = {}
    for component, source in sources.components.items():
        if source.folder is None or source.file is not None:
            continue
        try:
            with _readable():
                names = _names(source.folder, "the component's folder")
                if NETWORK_CONFIG in names:  # tokenizers, schedulers and processors have others
                    config = read_json(source.folder / NETWORK_CONFIG, f"{source.folder.name}/{NETWORK_CONFIG}")
                    library = "diffusers" if "_class_name" in config else "transformers"
                    found[component] = read_weights(source.folder, names, library, PLAIN)
        except BrokenFolder as error:
            raise UnusableSource(source.key, str(error)) from error
    return found


@contextmanager
def _readable() -> Iterator[None]:
    """Turn an error of the file system, as for a folder that this user may list and not enter."""
    try:
        yield
    except OSError as error:
        raise BrokenFolder(f"the model's folder cannot be read: {error.strerror}") from error


def _pipeline_class(index: Mapping[str, Any], given: str | None, saved_by: object) -> str:
    name = given or index.get("_class_name")
    if isinstance(name, list):
        raise BrokenFolder(f"{INDEX} names a pipeline in a program of the folder ({name[-1]}), which is not run")
    if not isinstance(name, str):
        raise BrokenFolder(f"{INDEX} has no _class_name; {AGAIN}")
    if given is None and not has_class(name):
        raise BrokenFolder(f"{INDEX} names the class {name[:100]}, {_not_there(saved_by)}")
    return name


def _not_there(saved_by: object) -> str:
    by = f"; the folder was saved by diffusers {saved_by[:30]}" if isinstance(saved_by, str) else ""
    return f"which diffusers {diffusers_version()} does not have{by}"


def _entries(index: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Return the components of an index that are there, with their libraries and classes."""
    return [
        (name, entry)
        for name, entry in index.items()
        if not name.startswith("_") and isinstance(entry, list) and len(entry) == 2  # (library, class)
        if all(isinstance(text, str) for text in entry)
    ]


def _listed(folder: Path, name: str, entry: list[str], saved_by: object) -> _Listed:
    """Return a component with its files.

    Raises:
        BrokenFolder: its class is unknown or a program of the folder, or its files cannot be listed.
    """
    library, class_name = entry
    if not name.isidentifier():
        raise BrokenFolder(f"{INDEX} names a component {name[:100]}, which is no folder's name; {AGAIN}")
    at = folder / name
    files = frozenset(_names(at, f"the folder {name}")) if at.is_dir() else frozenset()
    if f"{library}.py" in files or not has_module(library):
        raise BrokenFolder(
            f"{INDEX} names {name} as {class_name[:100]} of {library[:100]}: a program of the folder, which is not "
            "run, or a library that is not supported"
        )
    if library == "diffusers" and not has_class(class_name):
        raise BrokenFolder(f"{INDEX} names {name} as {class_name[:100]}, {_not_there(saved_by)}")
    if not at.is_dir():
        raise BrokenFolder(f"the folder {name} is not there, but {INDEX} names it; {AGAIN}")
    if not files:
        raise BrokenFolder(f"the folder {name} is empty; {AGAIN}")
    for file in sorted(files):
        _check_pointer(at / file, f"{name}/{file}")
    return _Listed(name, library, class_name, files)


def _check_config(folder: Path, listed: _Listed) -> None:
    config = f"{listed.name}/{NETWORK_CONFIG}"
    if NETWORK_CONFIG not in listed.files:
        raise BrokenFolder(f"{config} is not there; {AGAIN}")
    read_json(folder / config, config)


def _check_pointer(file: Path, at: str) -> None:
    """Refuse a link without a target, and a Git LFS pointer, in place of a small file. Weights are checked as read."""
    if file.suffix not in SMALL_FILES:
        return
    try:
        status = file.stat()
        if not S_ISREG(status.st_mode):
            raise BrokenFolder(f"{at} is no ordinary file")
        if status.st_size < MOST_LFS_BYTES:
            with file.open("rb") as opened:
                if opened.read(len(LFS_POINTER)) == LFS_POINTER:
                    raise BrokenFolder(f"{at}: {OTHER_FORMATS[LFS_POINTER]}")
    except FileNotFoundError as error:
        raise BrokenFolder(f"{at} {DANGLING}") from error
    except OSError as error:
        raise BrokenFolder(f"{at} cannot be read: {error.strerror}") from error


def _names(folder: Path, at: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise BrokenFolder(f"{at} cannot be read: {error.strerror}") from error
