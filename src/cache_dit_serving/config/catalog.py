"""The configurations in `configs/`, and which of them is for a model: by its hub id, or by its class and components."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from cache_dit_serving.config.settings import AboutSettings, ModelSettings

PACKAGE = Path(__file__).resolve().parents[1]
INSTALLED = PACKAGE / "bundle"
"""Folder of an installed wheel that holds service.py and configs/ (setup.py)."""
BUNDLE_ROOT = INSTALLED if INSTALLED.is_dir() else PACKAGE.parents[1]
"""Folder that holds service.py and configs/: in a checkout and in a built Bento the one that holds src/."""
CONFIGS = BUNDLE_ROOT / "configs"
INDEX = "model_index.json"
FILES = {"scheduler": "scheduler_config.json"}
"""A component's file, where it is not `config.json`."""
HUB_S = 10
"""Seconds to wait for the hub's first answer."""

logger = logging.getLogger(__name__)
ReadJson = Callable[[str], "Mapping[str, Any] | None"]
"""The JSON of a file in a model's folder; None where there is none."""


@dataclass(frozen=True)
class CatalogEntry:
    """A configuration, as far as the catalogue needs it."""

    name: str
    model: ModelSettings
    about: AboutSettings

    @property
    def hub_ids(self) -> tuple[str, ...]:
        return (self.model.path, *self.about.hub_ids)


class Recognised(NamedTuple):
    """The configuration that is for a model."""

    name: str
    """Empty where there is none for it."""
    why: str
    """How it was found, or why none was: a phrase."""


def config_names() -> list[str]:
    """The names that `CACHE_DIT_SERVING_CONFIG` accepts."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


@cache
def catalog() -> tuple[CatalogEntry, ...]:
    """Every configuration in `configs/`, by name."""
    entries = []
    for name in config_names():
        tree = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8")) or {}
        model = ModelSettings.model_validate(tree.get("model", {}))
        entries.append(CatalogEntry(name, model, AboutSettings.model_validate(tree.get("about", {}))))
    return tuple(entries)


def recognise(path: str, revision: str | None = None) -> Recognised:
    """The configuration for a folder or a hub id; of several that fit, the one with the most facts that say so.

    A folder that `save_pretrained` wrote holds the hub id that it was loaded from. Of a hub id that no configuration
    names, the small files are read, from the local cache or the hub.
    """
    entries = [entry for entry in catalog() if entry.about.recognised]
    named = next((entry.name for entry in entries if path in entry.hub_ids), None)
    if named is not None:
        return Recognised(named, f"{path} is its model")
    folder = Path(path).expanduser()
    read = _in_folder(folder) if folder.is_dir() else _on_hub(path, revision)
    index = read(INDEX)
    if index is None:
        return Recognised("", f"{path} has no {INDEX} that could be read")
    pipeline_class = index.get("_class_name")
    source = index.get("_name_or_path")
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
    if not best:
        return Recognised("", f"none is for a {pipeline_class} with such components")
    if len(best) > 1:
        return Recognised("", f"{' and '.join(best)} are for a {pipeline_class} alike; name one with --config")
    return Recognised(best[0], f"it is for a {pipeline_class} with such components")


def _agrees(about: AboutSettings, index: Mapping[str, Any], read: ReadJson) -> bool:
    """Whether a folder has what tells a configuration's model from others of its class."""
    for component, facts in about.components.items():
        there = bool(index.get(component)) and any(index[component])
        if isinstance(facts, bool):
            if facts is not there:
                return False
            continue
        config = index if component == "pipeline" else read(f"{component}/{FILES.get(component, 'config.json')}")
        if config is None or any(config.get(key) != _plain(value) for key, value in facts.items()):
            return False
    return True


def _plain(value: Any) -> Any:
    """As JSON has it."""
    return list(value) if isinstance(value, tuple) else value


def _in_folder(folder: Path) -> ReadJson:
    @cache
    def read(name: str) -> Mapping[str, Any] | None:
        try:
            found = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    return read


@cache
def _on_hub(hub_id: str, revision: str | None) -> ReadJson:
    """Of a hub id, by its cached files if they are there."""

    @cache
    def read(name: str) -> Mapping[str, Any] | None:
        import huggingface_hub

        for local in (True, False):
            try:
                if not local and name == INDEX:
                    # A download repeats itself for 20 seconds where there is no network; this does not.
                    huggingface_hub.model_info(hub_id, revision=revision, timeout=HUB_S)
                file = huggingface_hub.hf_hub_download(hub_id, name, revision=revision, local_files_only=local)
            except Exception as error:  # noqa: BLE001 (offline, no such model, no access: loading it will say so)
                logger.info("%s of %s cannot be read: %s", name, hub_id, type(error).__name__)
                continue
            path = Path(file)
            return _in_folder(path.parent)(path.name)
        return None

    return read
