"""Reading the settings tree: one YAML, each leaf overridable from the environment, checked before any weights load.

`CACHE_DIT_SERVING_CONFIG` names a file in `configs/` or gives a path; `CACHE_DIT_SERVING__MODEL__PATH=...` overrides
one leaf. Without a file's name the one that is for the model's path is taken, or else `generic`; with neither the
embedded model is served.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from cache_dit_serving.config.catalog import CONFIGS, Recognised, config_names, recognise
from cache_dit_serving.config.keys import explain_key
from cache_dit_serving.config.settings import EMBEDDED_MODEL, Settings
from cache_dit_serving.config.values import with_lists
from cache_dit_serving.config.variables import (
    CONFIG_VARIABLE,
    MODEL_PATH_VARIABLE,
    NOT_YAML,
    REVISION_VARIABLE,
    apply_overrides,
    origins_noted,
    place_of,
    unquoted_variables,
)
from cache_dit_serving.errors import ConfigError
from cache_dit_serving.findings import and_more, findings_of, known_keys, model_of_field, nearest_key, not_supported

DEFAULT_CONFIG = "embedded"
GENERIC_CONFIG = "generic"
"""Knows nothing of a model: every default is the pipeline's own."""
API_KEYS = ("server", "api_keys")


@dataclass(frozen=True)
class Resolved:
    """The settings, and where they came from."""

    settings: Settings
    configuration: Recognised
    """The configuration that was taken, and why."""
    origins: Mapping[str, str]
    """Dotted key -> the file, variable or flag that set it; empty for a default that the launcher made absolute."""

    @property
    def name(self) -> str:
        """The configuration's name, for callers: without the folder of a file."""
        return config_file(self.configuration.name).stem

    def origin(self, key: str) -> str:
        """Where the value at a dotted key came from, its section's where that was set as a whole; empty: a default."""
        while key not in self.origins and key:
            key = key.rpartition(".")[0]
        return self.origins.get(key, "")

    def described(self) -> str:
        """The configuration and why it was taken, then what flags and variables set: one line without their values."""
        name, why = self.configuration
        file = config_file(name).name
        others = [f"{key} by {origin}" for key, origin in sorted(self.origins.items()) if origin not in ("", file)]
        return "; ".join((f"configuration {name}: {why}", *others))


def load_settings(environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings that `environ` asks for.

    Raises:
        ConfigError: as :func:`resolve`.
    """
    return resolve(environ).settings


def resolve(environ: Mapping[str, str] = os.environ) -> Resolved:
    """The settings that `environ` asks for, with the origin of each.

    Raises:
        ConfigError: no such file, not YAML, an unknown key (with its nearest neighbour) or a wrong value.
    """
    chosen, variables = chosen_config(environ), unquoted_variables(environ)
    file = config_file(chosen.name)
    tree = _tree_of(file)
    origins = dict.fromkeys(_leaves(tree, Settings), file.name)
    noted, overriding = origins_noted(environ), []
    for key, variable in apply_overrides(tree, variables).items():
        origin = noted.get(variable, variable)
        if origin:  # else the same value, as an absolute path
            overriding.append(origin)
            origins = {known: each for known, each in origins.items() if not known.startswith(f"{key}.")}
            origins[key] = origin
    try:
        settings = Settings.model_validate(with_lists(tree, Settings))
    except ValidationError as error:
        source = str(file) + (f" with {', '.join(sorted({*overriding}))}" if overriding else "")
        raise ConfigError(f"{source}: {explain(error)}") from error
    return Resolved(settings, chosen, origins)


def _tree_of(file: Path) -> dict[str, Any]:
    """The mapping of sections that a file holds.

    Raises:
        ConfigError: it holds none, or cannot be read.
    """
    try:
        # As bytes: YAML finds the byte order mark of UTF-8 and UTF-16, which Windows' editors write.
        tree = yaml.load(file.read_bytes(), _UniqueKeyLoader) or {}
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error
    except NOT_YAML as error:
        raise ConfigError(f"{file}: cannot be read as YAML: {place_of(error)}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{file}: the file must hold a mapping of sections, not a {type(tree).__name__}")
    for section in ("cache", "parallelism", "quantize"):
        # A file written for cache_dit.load_configs calls the section so.
        if f"{section}_config" in tree and section not in tree:
            tree[section] = tree.pop(f"{section}_config")
    return tree


def _leaves(tree: Mapping[str, Any], model: type[BaseModel] | None, at: str = "") -> Iterator[str]:
    """Dotted keys of a tree's settings."""
    for key, value in tree.items():
        section = model_of_field(model, key) if model else None
        if isinstance(value, dict) and value and section:
            yield from _leaves(value, section, f"{at}{key}.")
        else:
            yield f"{at}{key}"


def chosen_config(environ: Mapping[str, str]) -> Recognised:
    """The configuration that is named, or else the one that is for the model's path.

    Raises:
        ConfigError: a variable of this server's is misspelt.
    """
    variables = unquoted_variables(environ)
    if named := variables.get(CONFIG_VARIABLE):
        return Recognised(named, origins_noted(environ).get(CONFIG_VARIABLE, f"{CONFIG_VARIABLE} names it"))
    path = variables.get(MODEL_PATH_VARIABLE, EMBEDDED_MODEL)
    if path == EMBEDDED_MODEL:
        return Recognised(DEFAULT_CONFIG, "the embedded model is served unless another is named")
    found = recognise(path, variables.get(REVISION_VARIABLE))
    # Another model takes nothing from a configuration: no sizes, speeds or figures.
    return found if found.name else Recognised(GENERIC_CONFIG, found.why)


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML in which a key stands once in a mapping: PyYAML 6 lets the last one win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value
            if key in seen and key_node.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice in one mapping", key_node.start_mark
                )
            # A key that is itself a list or mapping is nothing that a setting could be.
            if isinstance(key, str):
                seen.add(key)
        return super().construct_mapping(node, deep)


def config_file(name: str) -> Path:
    """The file for a name in `configs/` or a path.

    Raises:
        ConfigError: neither exists; the message names the nearest.
    """
    if name.endswith((".yaml", ".yml")) or os.sep in name:
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


def explain(error: ValidationError) -> str:
    """Pydantic's findings, each with its dotted key, and the nearest known key for an unknown one."""
    sentences = []
    for finding in findings_of(error):
        if finding.keys[:2] == API_KEYS:
            sentences.append(explain_key(finding))
        elif finding.kind == "extra_forbidden":
            known = known_keys(Settings, finding.keys[:-1])
            nearest = nearest_key(finding.keys[-1], known)
            hint = f"did you mean '{nearest}'?" if nearest else f"known keys: {', '.join(known)}"
            sentences.append(f"unknown key '{finding.field}'; {not_supported(finding.keys[-1]) or hint}")
        else:
            sentences.append(f"'{finding.field}': {finding.message}" if finding.field else finding.message)
    return "; ".join(sentences) + and_more(error)
