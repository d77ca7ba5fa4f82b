"""Files of configurations: where each lies, and the tree that its YAML holds."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from cache_dit_serving.config.catalog import CONFIGS, config_names
from cache_dit_serving.config.yaml_errors import NOT_YAML, place_of
from cache_dit_serving.errors import ConfigError
from cache_dit_serving.findings import model_of_field, nearest_key


def is_path(name: str) -> bool:
    """Return whether a configuration is named by its file, not by its name in `configs/`."""
    return name.endswith((".yaml", ".yml")) or os.sep in name


def config_file(name: str) -> Path:
    """Return the file of a configuration, given by its name in `configs/` or by a path.

    Raises:
        ConfigError: there is no such file; for a name, the message has the nearest known one.
    """
    if is_path(name):
        path = Path(name).expanduser()
        if not path.is_file():
            raise ConfigError(f"configuration file {name} does not exist")
        return path
    path = CONFIGS / f"{name}.yaml"
    if not path.is_file():
        near = nearest_key(name, config_names())
        meant = f"; did you mean {near}?" if near else ";"
        raise ConfigError(f"no configuration named {name!r}{meant} `cache-dit-serving models` lists them")
    return path


def tree_of(file: Path) -> dict[str, Any]:
    """Return the mapping of sections that a YAML file holds.

    Raises:
        ConfigError: the file cannot be read, or holds no mapping.
    """
    try:
        # Read as bytes: PyYAML then detects the byte order mark of UTF-8 and UTF-16, which Windows' editors write.
        tree = yaml.load(file.read_bytes(), _UniqueKeyLoader) or {}
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error
    except NOT_YAML as error:
        raise ConfigError(f"{file}: cannot be read as YAML: {place_of(error)}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{file}: the file must hold a mapping of sections, not a {type(tree).__name__}")
    return with_own_names(tree)


def with_own_names(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tree with the sections of a file for cache_dit.load_configs under their names here."""
    result = dict(tree)
    for section in ("cache", "parallelism", "quantize"):
        if f"{section}_config" in result and section not in result:
            result[section] = result.pop(f"{section}_config")
    return result


def leaves(tree: Mapping[str, Any], model: type[BaseModel] | None, at: str = "") -> Iterator[str]:
    """Yield the dotted key of each setting in a tree."""
    for key, value in tree.items():
        section = model_of_field(model, key) if model else None
        if isinstance(value, dict) and value and section:
            yield from leaves(value, section, f"{at}{key}.")
        else:
            yield f"{at}{key}"


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML loader that refuses a key given twice in one mapping. PyYAML 6 silently takes the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value
            if key in seen and key_node.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice in one mapping", key_node.start_mark
                )
            # A key that is itself a list or mapping is refused later, as an unknown setting.
            if isinstance(key, str):
                seen.add(key)
        return super().construct_mapping(node, deep)
