"""Catalogue of the configurations in `configs/`. Recognises a model's by its hub id, or by its class and components."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from cache_dit_serving.checkpoints.checkpoint_file import CheckpointFile
from cache_dit_serving.config import hub
from cache_dit_serving.config.folder import INDEX, ReadJson, in_folder, is_file, is_folder
from cache_dit_serving.config.hub import on_hub
from cache_dit_serving.config.hub_file import HubFile, hub_file
from cache_dit_serving.config.parameters import FAR_SMALLER, far_smaller
from cache_dit_serving.config.settings import EMBEDDED_MODEL, AboutSettings, ModelSettings
from cache_dit_serving.safetensors_header import UnreadableFile

PACKAGE = Path(__file__).resolve().parents[1]
INSTALLED = PACKAGE / "bundle"
"""Folder of an installed wheel that holds service.py and configs/ (setup.py)."""
BUNDLE_ROOT = INSTALLED if INSTALLED.is_dir() else PACKAGE.parents[1]
"""Folder that holds service.py and configs/: in a checkout and in a built Bento the one that holds src/."""
CONFIGS = BUNDLE_ROOT / "configs"
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's where PyYAML has it: a server reads all configurations as it starts, which PyYAML's own is slow at."""
CONFIG_FILES = {"scheduler": "scheduler_config.json"}
"""A component's file, where it is not `config.json`."""


@dataclass(frozen=True)
class CatalogEntry:
    """The parts of a configuration that identify its model."""

    name: str
    model: ModelSettings
    about: AboutSettings

    @property
    def hub_ids(self) -> tuple[str, ...]:
        return (self.model.path, *self.about.hub_ids)


class Recognised(NamedTuple):
    """Result of the search for a model's configuration."""

    name: str
    """Name of the configuration; empty if none is for the model."""
    why: str
    """Reason for the match, or for the lack of one: a phrase."""


def config_names() -> list[str]:
    """Return the names that `CACHE_DIT_SERVING_CONFIG` accepts, sorted."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


@cache
def catalog() -> tuple[CatalogEntry, ...]:
    """Return every configuration in `configs/`, sorted by name."""
    entries = []
    for name in config_names():
        tree = yaml.load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"), LOADER) or {}
        model = ModelSettings.model_validate(tree.get("model", {}))
        entries.append(CatalogEntry(name, model, AboutSettings.model_validate(tree.get("about", {}))))
    return tuple(entries)


def recognise(
    path: str, revision: str | None = None, subfolder: str | None = None, *, base: str | None = None
) -> Recognised:
    """Return the configuration for a folder, a hub id or a file. Of several, the one with the most matching facts.

    A folder that `save_pretrained` wrote holds the hub id that it was loaded from. For a hub id that no configuration
    names, the model's small files are read from the local cache or the hub. A test model with far smaller weights does
    not match the model that it imitates.

    Args:
        base: folder or hub id that completes a transformer alone; its configuration is the transformer's.
    """
    if (found := _of_named_file(path, base, revision)) is not None:
        return found
    if base is not None:
        return recognise(base, revision)
    entries = [entry for entry in catalog() if entry.about.recognised]
    named = next((entry.name for entry in entries if path in entry.hub_ids), None)
    if named is not None and subfolder is None:
        return Recognised(named, f"{path} is its model")
    read = in_folder(Path(path).expanduser() / (subfolder or "")) if is_folder(path) else on_hub(path, revision)
    if subfolder is not None and not is_folder(path):
        read = partial(_below, read, subfolder)
    index = read(INDEX)
    if index is None:
        return Recognised("", f"{path} has no {INDEX} that could be read")
    pipeline_class = index.get("_class_name")
    source = index.get("_name_or_path")
    small = far_smaller_than(read)
    imitated = [entry.name for entry in entries if entry.about.pipeline_class == pipeline_class and small(entry)]
    entries = [entry for entry in entries if not small(entry)]
    for entry in entries:
        if source in entry.hub_ids and entry.about.pipeline_class in (None, pipeline_class):
            return Recognised(entry.name, f"{path} was saved from {source}")
    fitting: dict[str, int] = {}
    for entry in entries:
        if entry.about.pipeline_class == pipeline_class and _agrees(entry.about, index, read):
            fitting[entry.name] = sum(
                len(facts) if isinstance(facts, dict) else 1 for facts in entry.about.components.values()
            )
    best = [name for name, facts in fitting.items() if facts == max(fitting.values())]
    if not best and imitated:
        return Recognised("", f"its transformer is far smaller than that of {' and '.join(imitated)}")
    if not best:
        return Recognised("", f"none is for a {pipeline_class} with such components")
    if len(best) > 1:
        return Recognised("", f"{' and '.join(best)} are for a {pipeline_class} alike; name one with --config")
    return Recognised(best[0], f"it is for a {pipeline_class} with such components")


def _below(read: ReadJson, folder: str, name: str) -> Mapping[str, Any] | None:
    return read(f"{folder}/{name}")


def _of_named_file(path: str, base: str | None, revision: str | None) -> Recognised | None:
    """Return the configuration for a file on this machine or on the hub; None: the path names none."""
    if is_file(path):
        return _of_file(Path(path).expanduser(), base, revision)
    named = None if is_folder(path) else hub_file(path)
    return None if named is None else _of_hub_file(named, base, revision)


def _of_file(path: Path, base: str | None, revision: str | None) -> Recognised:
    """Return the configuration for a file: that of its base if there is one, else that of its family's model."""
    if found := _of_base(path.name, base, revision):
        return found
    try:
        return _of_contents(CheckpointFile.read(path))
    except UnreadableFile:
        return Recognised("", f"{path.name} cannot be read")


def _of_hub_file(named: HubFile, base: str | None, revision: str | None) -> Recognised:
    if (there := hub.cached(*named)) is not None:
        return _of_file(there, base, revision)
    if found := _of_base(named.file_name, base, revision):
        return found
    header = hub.header_on_hub(named)
    if header is None or not header.tensors:
        return Recognised("", f"{named.file_name} cannot be read on the hub")
    return _of_contents(CheckpointFile.of(Path(named.file_name), header))


def _of_base(name: str, base: str | None, revision: str | None) -> Recognised | None:
    """Return the configuration of the model that completes a file; None: it has none."""
    if base is None or base == EMBEDDED_MODEL:
        return None
    found = recognise(base, revision)
    return Recognised(found.name, f"{name} is completed by it: {found.why}") if found.name else None


def _of_contents(file: CheckpointFile) -> Recognised:
    if file.family is None:
        return Recognised("", f"{file.name} is a {file.kind} of no known family")
    hub_id = file.family.hub_id
    entry = next((each for each in catalog() if each.about.recognised and hub_id in each.hub_ids), None)
    if entry is None:
        return Recognised("", f"none is for {hub_id}, which {file.name} is like")
    if entry.about.parameters and file.parameters * FAR_SMALLER < entry.about.parameters * 1e9:
        return Recognised("", f"its transformer is far smaller than that of {entry.name}")
    return Recognised(entry.name, f"{file.name} has the tensors of {hub_id}")


def far_smaller_than(read: ReadJson) -> Callable[[CatalogEntry], bool]:
    """Return a function that tells if the model read by `read` is far smaller than a configuration's model."""
    config = read("transformer/config.json")
    return lambda entry: far_smaller(config, entry.about.parameters)


def _agrees(about: AboutSettings, index: Mapping[str, Any], read: ReadJson) -> bool:
    """Return whether a model has every component and configuration value that `about` lists."""
    for component, facts in about.components.items():
        there = bool(index.get(component)) and any(index[component])
        if isinstance(facts, bool):
            if facts is not there:
                return False
            continue
        config = index if component == "pipeline" else read(f"{component}/{CONFIG_FILES.get(component, 'config.json')}")
        if config is None or any(config.get(key) != _plain(value) for key, value in facts.items()):
            return False
    return True


def _plain(value: Any) -> Any:
    """Return a tuple as a list, to compare it with JSON; other values as they are."""
    return list(value) if isinstance(value, tuple) else value
