"""Reading the settings tree: one YAML, each leaf overridable from the environment, checked before any weights load.

`CACHE_DIT_SERVING_CONFIG` names a file in `configs/` or gives a path; `CACHE_DIT_SERVING__MODEL__PATH=...` overrides
one leaf. Without a file's name the one that is for the model's path is taken, or else `generic`; with neither the
embedded model is served.
"""

from __future__ import annotations

import os
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from cache_dit_serving.config.catalog import CONFIGS, Recognised, config_names, recognise
from cache_dit_serving.config.keys import explain_key
from cache_dit_serving.config.settings import EMBEDDED_MODEL, Settings
from cache_dit_serving.errors import ConfigError
from cache_dit_serving.findings import and_more, findings_of, known_keys, model_of_field, nearest_key, not_supported

CONFIG_VARIABLE = "CACHE_DIT_SERVING_CONFIG"
OVERRIDE_PREFIX = "CACHE_DIT_SERVING__"
DEFAULT_CONFIG = "embedded"
GENERIC_CONFIG = "generic"
"""Knows nothing of a model: every default is the pipeline's own."""
MODEL_PATH_VARIABLE = f"{OVERRIDE_PREFIX}MODEL__PATH"
NOT_YAML = (yaml.YAMLError, ValueError, RecursionError)
"""PyYAML 6 raises ValueError for a date that there is none of, RecursionError for deep nesting."""
API_KEYS = ("server", "api_keys")
REVISION_VARIABLE = f"{OVERRIDE_PREFIX}MODEL__REVISION"


def load_settings(environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings that `environ` asks for.

    Raises:
        ConfigError: no such file, not YAML, an unknown key (with its nearest neighbour) or a wrong value.
    """
    file = config_file(chosen_config(environ).name)
    try:
        tree = yaml.load(file.read_text(encoding="utf-8"), _UniqueKeyLoader) or {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read as YAML: {' '.join(str(error).split())}") from error
    except NOT_YAML as error:
        raise ConfigError(f"{file}: cannot be read as YAML: {_place_of(error)}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{file}: the file must hold a mapping of sections, not a {type(tree).__name__}")
    for section in ("cache", "parallelism", "quantize"):
        # A file written for cache_dit.load_configs calls the section so.
        if f"{section}_config" in tree and section not in tree:
            tree[section] = tree.pop(f"{section}_config")
    overridden = apply_overrides(tree, environ)
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        source = f"{file}" + (f" with {', '.join(overridden)} from the environment" if overridden else "")
        raise ConfigError(f"{source}: {explain(error)}") from error


def chosen_config(environ: Mapping[str, str]) -> Recognised:
    """The configuration that is named, or else the one that is for the model's path."""
    if named := environ.get(CONFIG_VARIABLE):
        return Recognised(named, f"{CONFIG_VARIABLE} names it")
    path = environ.get(MODEL_PATH_VARIABLE, EMBEDDED_MODEL)
    if path == EMBEDDED_MODEL:
        return Recognised(DEFAULT_CONFIG, "the embedded model is served unless another is named")
    found = recognise(path, environ.get(REVISION_VARIABLE))
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


def apply_overrides(tree: dict[str, Any], environ: Mapping[str, str]) -> list[str]:
    """Set the leaves that `CACHE_DIT_SERVING__SECTION__KEY` variables name; returns those variables' names.

    Section names are matched in lower case, keys as the section spells them (`CACHE__FN_COMPUTE_BLOCKS` sets
    `Fn_compute_blocks`). A value that starts like a YAML list or mapping, or is `null`, is read as YAML; any other is
    text, which its field converts.
    """
    names = sorted(name for name in environ if name.startswith(CONFIG_VARIABLE.removesuffix("CONFIG")))
    names = [name for name in names if name != CONFIG_VARIABLE]
    for name in names:
        if not name.startswith(OVERRIDE_PREFIX):
            raise ConfigError(f"{name} is no setting; settings begin with {OVERRIDE_PREFIX} (two underscores)")
    for name in names:
        *sections, leaf = name.removeprefix(OVERRIDE_PREFIX).split("__")
        node, model = tree, typing.cast("type[BaseModel] | None", Settings)
        for section in sections:
            key = _spelling(section, model)
            if not isinstance(node.get(key), dict):
                node[key] = {}
            node, model = node[key], model_of_field(model, key) if model else None
        text = environ[name]
        try:
            # Below a free mapping (pipeline_arguments) no field converts the text: YAML decides there.
            as_yaml = text[:1] in "[{" or text == "null" or model is None
            node[_spelling(leaf, model)] = yaml.safe_load(text) if as_yaml else text
        except NOT_YAML as error:
            raise ConfigError(f"{name} is not valid YAML: {_place_of(error)}") from None
    return names


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


def _place_of(error: Exception) -> str:
    """Where YAML ends to be YAML, without the text there: it may be a secret."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}"
    return "it is nested too deeply" if isinstance(error, RecursionError) else "it holds no valid value"


def _spelling(name: str, model: type[BaseModel] | None) -> str:
    """A key as its section spells it, from a variable's name (which is in capitals)."""
    known = {key.lower(): key for key in model.model_fields} if model else {}
    return known.get(name.lower(), name.lower())
