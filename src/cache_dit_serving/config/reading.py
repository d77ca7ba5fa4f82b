"""Reading of the settings tree: one YAML file, each leaf overridable from the environment, checked before weights load.

`CACHE_DIT_SERVING_CONFIG` names a configuration in `configs/` or gives a path. `CACHE_DIT_SERVING__MODEL__PATH=...`
overrides one leaf. Without a configuration, the one that fits the model's path is taken, or `generic` if none fits.
Without a model's path either, the embedded model is served.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from cache_dit_serving.config.catalog import Recognised, recognise
from cache_dit_serving.config.config_file import config_file, leaves, tree_of
from cache_dit_serving.config.explained import explain
from cache_dit_serving.config.models import ENTRY_SECTIONS, NamedModel, RefusedModels, read_models
from cache_dit_serving.config.settings import EMBEDDED_MODEL, Settings
from cache_dit_serving.config.values import with_lists
from cache_dit_serving.config.variables import (
    CONFIG_VARIABLE,
    MODEL_BASE_VARIABLE,
    MODEL_PATH_VARIABLE,
    MODELS_VARIABLE,
    REVISION_VARIABLE,
    SUBFOLDER_VARIABLE,
    apply_overrides,
    origins_noted,
    unquoted_variables,
)
from cache_dit_serving.errors import ConfigError

DEFAULT_CONFIG = "embedded"
GENERIC_CONFIG = "generic"
"""Configuration for any model: every default is the pipeline's own."""


@dataclass(frozen=True)
class Resolved:
    """The settings and their origins."""

    settings: Settings
    """The whole tree. With a list of models, the sections of a model are those of the default one, and its limits on
    bodies and steps the greatest of all models."""
    configuration: Recognised
    """The chosen configuration, with the reason."""
    origins: Mapping[str, str]
    """Dotted key -> the file, variable or flag that set it; empty for a default that the launcher made absolute."""
    models: tuple[NamedModel, ...]
    """The models, the default first; without a list one, whose settings are the whole tree."""

    @property
    def name(self) -> str:
        """Name of the configuration, for callers; of a file its stem."""
        return config_file(self.configuration.name).stem

    def origin(self, key: str) -> str:
        """Return the origin of the value at a dotted key, or of its section if that was set as a whole.

        Empty for a default. With a list of models, a key of a model's section is the default model's.
        """
        if self.settings.models and key.partition(".")[0] in ENTRY_SECTIONS:
            names = [entry.name for entry in self.settings.models]
            key = f"models.{names.index(self.models[0].name)}.settings.{key}"
        while key not in self.origins and key:
            key = key.rpartition(".")[0]
        return self.origins.get(key, "")

    def described(self) -> str:
        """Return one line: the configuration with the reason, the models, then the keys that flags and variables set.

        Values are left out: they may be secrets.
        """
        name, why = self.configuration
        listed = [f"models {', '.join(map(_described, self.models))}"] if self.settings.models else []
        file = config_file(name).name
        others = [
            f"{key} by {origin}"
            for key, origin in sorted(self.origins.items())
            if origin not in ("", file) and not key.startswith("models.")
        ]
        return "; ".join((f"configuration {name}: {why}", *listed, *others))


def _described(model: NamedModel) -> str:
    """Return a model's name, with its configuration and that it is the default."""
    said = [f"configuration {model.configuration}"] if model.configuration else []
    said += ["the default"] if model.is_default else []
    return f"{model.name} ({', '.join(said)})" if said else model.name


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
    if below := next((name for name in sorted(variables) if name.startswith(f"{MODELS_VARIABLE}__")), None):
        raise ConfigError(f"{below}: no variable sets a part of the list of models; {MODELS_VARIABLE} sets all of it")
    file = config_file(chosen.name)
    only_listed = MODELS_VARIABLE in variables and not variables.get(CONFIG_VARIABLE)
    tree = {} if only_listed else tree_of(file)
    origins = dict.fromkeys(leaves(tree, Settings), file.name)
    noted, overriding = origins_noted(environ), []
    for key, variable in apply_overrides(tree, variables).items():
        origin = noted.get(variable, variable)
        if origin:  # empty: the launcher only made the value an absolute path
            overriding.append(origin)
            origins = {known: each for known, each in origins.items() if not known.startswith(f"{key}.")}
            origins[key] = origin
    source = " with ".join(filter(None, ("" if only_listed else str(file), ", ".join(sorted({*overriding})))))
    try:
        if tree.get("models"):
            folder = Path() if MODELS_VARIABLE in variables else file.parent
            settings, models = read_models(tree, origins, folder)
        else:
            settings = Settings.model_validate(with_lists(tree, Settings))
            models = (NamedModel("", settings, file.stem, (), "always", is_default=True),)
    except ValidationError as error:
        raise ConfigError(f"{source}: {explain(error)}") from error
    except RefusedModels as error:
        raise ConfigError(f"{source}: {error}") from error
    return Resolved(settings, chosen, origins, models)


def chosen_config(environ: Mapping[str, str]) -> Recognised:
    """Return the configuration that the environment names, or else the one that fits the model's path.

    Raises:
        ConfigError: a variable of this server is misspelt.
    """
    variables = unquoted_variables(environ)
    if named := variables.get(CONFIG_VARIABLE):
        return Recognised(named, origins_noted(environ).get(CONFIG_VARIABLE, f"{CONFIG_VARIABLE} names it"))
    if MODELS_VARIABLE in variables:
        return Recognised(GENERIC_CONFIG, f"{MODELS_VARIABLE} lists the models")
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
