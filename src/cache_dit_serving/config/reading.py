"""Reading of the settings tree: one YAML file, each leaf overridable from the environment, checked before weights load.

`CACHE_DIT_SERVING_CONFIG` names a configuration in `configs/` or gives a path. `CACHE_DIT_SERVING__MODEL__PATH=...`
overrides one leaf. Without a configuration, the one that fits the model's path is taken, or `generic` if none fits.
Without a model's path either, the embedded model is served.
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
    MODEL_BASE_VARIABLE,
    MODEL_PATH_VARIABLE,
    NOT_YAML,
    REVISION_VARIABLE,
    SUBFOLDER_VARIABLE,
    apply_overrides,
    origins_noted,
    place_of,
    unquoted_variables,
)
from cache_dit_serving.errors import ConfigError
from cache_dit_serving.findings import and_more, findings_of, known_keys, model_of_field, nearest_key, not_supported

DEFAULT_CONFIG = "embedded"
GENERIC_CONFIG = "generic"
"""Configuration for any model: every default is the pipeline's own."""
API_KEYS = ("server", "api_keys")


@dataclass(frozen=True)
class Resolved:
    """The settings and their origins."""

    settings: Settings
    configuration: Recognised
    """The chosen configuration, with the reason."""
    origins: Mapping[str, str]
    """Dotted key -> the file, variable or flag that set it; empty for a default that the launcher made absolute."""

    @property
    def name(self) -> str:
        """Name of the configuration, for callers; of a file its stem."""
        return config_file(self.configuration.name).stem

    def origin(self, key: str) -> str:
        """Return the origin of the value at a dotted key, or of its section if that was set as a whole.

        Empty for a default.
        """
        while key not in self.origins and key:
            key = key.rpartition(".")[0]
        return self.origins.get(key, "")

    def described(self) -> str:
        """Return one line: the configuration with the reason for it, then the keys that flags and variables set.

        Values are left out: they may be secrets.
        """
        name, why = self.configuration
        file = config_file(name).name
        others = [f"{key} by {origin}" for key, origin in sorted(self.origins.items()) if origin not in ("", file)]
        return "; ".join((f"configuration {name}: {why}", *others))


def load_settings(environ: Mapping[str, str] = os.environ) -> Settings:
    """Return the settings that `environ` describes.

    Raises:
        ConfigError: as :func:`resolve`.
    """
    return resolve(environ).settings


def resolve(environ: Mapping[str, str] = os.environ) -> Resolved:
    """Return the settings that `environ` describes, with the origin of each.

    Raises:
        ConfigError: the file does not exist or is not YAML; a key is unknown (the message has the nearest known one);
            or a value is not valid.
    """
    chosen, variables = chosen_config(environ), unquoted_variables(environ)
    file = config_file(chosen.name)
    tree = _tree_of(file)
    origins = dict.fromkeys(_leaves(tree, Settings), file.name)
    noted, overriding = origins_noted(environ), []
    for key, variable in apply_overrides(tree, variables).items():
        origin = noted.get(variable, variable)
        if origin:  # empty: the launcher only made the value an absolute path
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
    for section in ("cache", "parallelism", "quantize"):
        # Files written for cache_dit.load_configs use this name.
        if f"{section}_config" in tree and section not in tree:
            tree[section] = tree.pop(f"{section}_config")
    return tree


def _leaves(tree: Mapping[str, Any], model: type[BaseModel] | None, at: str = "") -> Iterator[str]:
    """Yield the dotted key of each setting in a tree."""
    for key, value in tree.items():
        section = model_of_field(model, key) if model else None
        if isinstance(value, dict) and value and section:
            yield from _leaves(value, section, f"{at}{key}.")
        else:
            yield f"{at}{key}"


def chosen_config(environ: Mapping[str, str]) -> Recognised:
    """Return the configuration that the environment names, or else the one that fits the model's path.

    Raises:
        ConfigError: a variable of this server is misspelt.
    """
    variables = unquoted_variables(environ)
    if named := variables.get(CONFIG_VARIABLE):
        return Recognised(named, origins_noted(environ).get(CONFIG_VARIABLE, f"{CONFIG_VARIABLE} names it"))
    path = variables.get(MODEL_PATH_VARIABLE, EMBEDDED_MODEL)
    if path == EMBEDDED_MODEL:
        return Recognised(DEFAULT_CONFIG, "the embedded model is served unless another is named")
    found = recognise(
        path,
        variables.get(REVISION_VARIABLE),
        variables.get(SUBFOLDER_VARIABLE),
        base=variables.get(MODEL_BASE_VARIABLE),
    )
    # A model that no configuration is for must not take another one's sizes, speeds or figures.
    return found if found.name else Recognised(GENERIC_CONFIG, found.why)


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


def config_file(name: str) -> Path:
    """Return the file of a configuration, given by its name in `configs/` or by a path.

    Raises:
        ConfigError: there is no such file; for a name, the message has the nearest known one.
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
    """Return pydantic's findings as one line, each with its dotted key; an unknown key with the nearest known one."""
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
