"""Environment variables that set the tree, and the launcher's note of the variables that came from its flags."""

from __future__ import annotations

import json
import typing
from collections.abc import Mapping
from typing import Any

import yaml
from pydantic import BaseModel

from cache_dit_serving.config.settings import Settings
from cache_dit_serving.config.values import items_of, unquoted
from cache_dit_serving.config.yaml_errors import NOT_YAML, place_of
from cache_dit_serving.errors import ConfigError
from cache_dit_serving.findings import model_of_field

PREFIX = "CACHE_DIT_SERVING_"
CONFIG_VARIABLE = f"{PREFIX}CONFIG"
OVERRIDE_PREFIX = f"{PREFIX}_"
MODEL_PATH_VARIABLE = f"{OVERRIDE_PREFIX}MODEL__PATH"
MODEL_BASE_VARIABLE = f"{OVERRIDE_PREFIX}MODEL__BASE"
MODELS_VARIABLE = f"{OVERRIDE_PREFIX}MODELS"
REVISION_VARIABLE = f"{OVERRIDE_PREFIX}MODEL__REVISION"
SUBFOLDER_VARIABLE = f"{OVERRIDE_PREFIX}MODEL__SUBFOLDER"
ORIGINS_VARIABLE = "CACHE_DIT_LAUNCHER_ORIGINS"
"""JSON object written by the launcher: variable that it set -> origin of the value, such as `--model-path`."""


def unquoted_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of this server, without quotes and blanks around their values.

    Raises:
        ConfigError: a variable has one underscore after the prefix instead of two.
    """
    found = {name: unquoted(text) for name, text in environ.items() if name.startswith(PREFIX)}
    for name in sorted(found):
        if name != CONFIG_VARIABLE and not name.startswith(OVERRIDE_PREFIX):
            raise ConfigError(f"{name} is no setting; settings begin with {OVERRIDE_PREFIX} (two underscores)")
    return found


def variable_of(key: str) -> str:
    """Return the name of the variable that sets the setting at a dotted key."""
    return OVERRIDE_PREFIX + key.upper().replace(".", "__")


def origins_noted(environ: Mapping[str, str]) -> dict[str, str]:
    """Return variable -> origin of its value, as the launcher noted it; empty without the launcher."""
    return typing.cast("dict[str, str]", json.loads(environ.get(ORIGINS_VARIABLE, "{}")))


def apply_overrides(tree: dict[str, Any], variables: Mapping[str, str]) -> dict[str, str]:
    """Set the leaves of `tree` that `CACHE_DIT_SERVING__SECTION__KEY` variables name. Returns dotted key -> variable.

    Section names are matched in lower case, keys as the section spells them (`CACHE__FN_COMPUTE_BLOCKS` sets
    `Fn_compute_blocks`). A value that starts like a YAML list or mapping, or is `null`, is read as YAML. Any other is
    text, which its field converts. Commas separate the items of a list.

    Args:
        variables: as :func:`unquoted_variables` returns them.

    Raises:
        ConfigError: a value that starts like YAML is not valid YAML.
    """
    applied = {}
    for name in sorted(variables.keys() - {CONFIG_VARIABLE}):
        *sections, leaf = name.removeprefix(OVERRIDE_PREFIX).split("__")
        node, model = tree, typing.cast("type[BaseModel] | None", Settings)
        path = []
        for section in sections:
            key = _spelling(section, model)
            if not isinstance(node.get(key), dict):
                node[key] = {}
            path.append(key)
            node, model = node[key], model_of_field(model, key) if model else None
        key = _spelling(leaf, model)
        text = variables[name]
        try:
            # Below a free mapping (pipeline_arguments) no field converts the text, so YAML gives its type.
            as_yaml = text[:1] in "[{" or text == "null" or model is None
            node[key] = yaml.safe_load(text) if as_yaml else items_of(text, model, key)
        except NOT_YAML as error:
            raise ConfigError(f"{name} is not valid YAML: {place_of(error)}") from None
        applied[".".join((*path, key))] = name
    return applied


def _spelling(name: str, model: type[BaseModel] | None) -> str:
    """Return a key as its section spells it, from part of a variable's name, which is in capitals."""
    known = {key.lower(): key for key in model.model_fields} if model else {}
    return known.get(name.lower(), name.lower())
