"""The list of models: each entry's whole tree, and the refusals of what several models in one process cannot have."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cache_dit_serving.config.acceleration import CompileSettings
from cache_dit_serving.config.config_file import config_file, is_path, leaves, tree_of, with_own_names
from cache_dit_serving.config.explained import explain
from cache_dit_serving.config.model_entry import ModelEntry
from cache_dit_serving.config.residency import Resident
from cache_dit_serving.config.settings import Settings
from cache_dit_serving.config.values import with_lists
from cache_dit_serving.errors import ConfigError

MODEL_SECTIONS = (
    "about",
    "model",
    "cache",
    "speeds",
    "quantize",
    "compile",
    "attention_backend",
    "defaults",
    "limits",
    "shadow",
)
"""Sections of one model. All others are the server's."""
SHARED_SECTIONS = ("limits", "shadow")
"""Sections of a model that may stand beside the list too: defaults of every entry."""
UNSHARED_SECTIONS = tuple(name for name in MODEL_SECTIONS if name not in SHARED_SECTIONS)
"""Sections that stand in an entry alone."""
ENTRY_SECTIONS = (*MODEL_SECTIONS, "parallelism")
"""Sections that an entry may have. Parallelism is one of them for a list of one model."""
GREATEST_LIMITS = ("max_body_bytes", "max_upload_bytes", "max_step_s")
"""Limits that are applied before a request's model is known, or to all models: the server has the greatest of all."""
SERVER_LIMITS = ("max_queue", "max_priority", "max_followers", "max_kept_jobs", "keep_jobs_s", "max_body_s")
"""Limits of the server, which no entry may have."""
NATIVE = "native"


SAME_EVERYWHERE: Mapping[str, Callable[[Settings], object]] = {
    "model.cpu_threads": lambda settings: settings.model.cpu_threads,
    # A processor that has no backend of its own takes the one that was set last in the process: diffusers 0.42.
    "attention_backend": lambda settings: settings.attention_backend or NATIVE,
}
"""Settings that torch or diffusers hold for the whole process, so that all models must have them alike."""
OF_COMPILED_MODELS: Mapping[str, Callable[[CompileSettings], object]] = {
    "compile.mode": lambda compile_: compile_.mode,
    "compile.folder": lambda compile_: compile_.folder,
}
"""Settings of torch's compiler for the whole process, so that all compiled models must have them alike."""


class RefusedModels(Exception):
    """A list of models that cannot be served. The message names the key and the remedy."""


@dataclass(frozen=True)
class NamedModel:
    """One of the models of a server, with its whole tree."""

    name: str
    """Name in requests; empty where the settings have no list."""
    settings: Settings
    """The model's own sections, and the server's sections of the top level."""
    configuration: str
    """Name of its configuration, of a file its stem; empty without one."""
    aliases: tuple[str, ...]
    """Further names in requests."""
    resident: Resident
    is_default: bool
    """True for the model of requests that name none; exactly one has it."""

    @property
    def label(self) -> str:
        """Beginning of a message about this model of several; empty where the settings have no list."""
        return f"model {self.name}: " if self.name else ""


def read_models(
    tree: Mapping[str, Any], origins: dict[str, str], folder: Path
) -> tuple[Settings, tuple[NamedModel, ...]]:
    """Return the server's settings with the default model's sections filled in, and the models, the default first.

    Args:
        tree: the top level, with the list.
        origins: dotted key -> origin of its value; the keys of the entries are added, as `models.0.settings.cache`.
        folder: folder that paths of configurations are relative to.

    Raises:
        RefusedModels: an entry is not valid, or models contradict each other or the top level.
        ValidationError: the top level is not valid.
    """
    _refuse_model_sections(tree, origins)
    server = Settings.model_validate(with_lists(dict(tree), Settings))
    server = server.model_copy(update={"models": tuple(_with_whole_path(entry, folder) for entry in server.models)})
    shared = {name: section for name, section in tree.items() if name != "models"}
    for key in _below("models", origins):
        origins["models"] = origins.pop(key)  # a list of one may be written as its entry
    default = next((index for index, entry in enumerate(server.models) if entry.default), 0)
    models = [
        _named(_Entry(index, entry), shared, origins, index == default) for index, entry in enumerate(server.models)
    ]
    models.insert(0, models.pop(default))
    _check_server(server, models)
    _check_agreement(server, models)
    return _with_default(server, models), tuple(models)


def _refuse_model_sections(tree: Mapping[str, Any], origins: Mapping[str, str]) -> None:
    """Refuse sections of a model beside the list.

    Raises:
        RefusedModels: names each of them, the variables and flags that set it, and its place.
    """
    sentences = []
    for name in UNSHARED_SECTIONS:
        if name in tree:
            by = ", ".join(f"{key} by {origins[key]}" for key in _below(name, origins))
            sentences.append(f"'{name}' stands beside the list of models ({by}); models.<name>.settings.{name} has it")
    if sentences:
        raise RefusedModels("; ".join(sentences))


def _with_whole_path(entry: ModelEntry, folder: Path) -> ModelEntry:
    """Return the entry with the absolute path of its configuration, where that is a file."""
    if entry.configuration is None or not is_path(entry.configuration):
        return entry
    path = folder / Path(entry.configuration).expanduser()
    return entry.model_copy(update={"configuration": str(path.absolute())})


class _Entry:
    """An entry with its two trees: that of its configuration's file, and its own over it."""

    def __init__(self, index: int, entry: ModelEntry) -> None:
        """
        Raises:
            RefusedModels: the file cannot be read, or a tree has a section that is the server's.
        """
        self.written, self.at = entry, f"models.{index}"
        self.file: Path | None = None
        self.below: dict[str, Any] = {}
        if entry.configuration is not None:
            try:
                self.file = config_file(entry.configuration)
                self.below = tree_of(self.file)
            except ConfigError as error:
                raise RefusedModels(f"'{self.at}.configuration': {error}") from error
        self.own = with_own_names(entry.settings)
        for tree in (self.below, self.own):
            self._refuse_server_sections(tree)

    def _refuse_server_sections(self, tree: Mapping[str, Any]) -> None:
        for name in tree:
            if name == "models":
                raise RefusedModels(f"'{self.spelt((name,))}' lists models itself; name a configuration of one model")
            if name in Settings.model_fields and name not in ENTRY_SECTIONS:
                raise RefusedModels(f"'{self.spelt((name,))}' holds for the whole server; move it to the top level")
        limits = tree.get("limits")
        for name in SERVER_LIMITS:
            if isinstance(limits, Mapping) and name in limits:
                where = f"move it to limits.{name} at the top level"
                raise RefusedModels(f"'{self.spelt(('limits', name))}' holds for the whole server; {where}")

    def spelt(self, keys: Sequence[str]) -> str:
        """Return a key of the merged tree as it is written: in the entry, or in its configuration's file."""
        if self.file is not None and _depth(self.below, keys) > _depth(self.own, keys):
            return f"{self.at}.configuration, {self.file.name}: {'.'.join(keys)}"
        return f"{self.at}.settings.{'.'.join(keys)}"


def _depth(tree: object, keys: Sequence[str]) -> int:
    """Return the number of a dotted key's parts that a tree holds."""
    for depth, key in enumerate(keys):
        if isinstance(tree, Mapping) and key in tree:
            tree = tree[key]
        elif isinstance(tree, list) and key.isdecimal() and int(key) < len(tree):
            tree = tree[int(key)]
        else:
            return depth
    return len(keys)


def _named(entry: _Entry, shared: Mapping[str, Any], origins: dict[str, str], is_default: bool) -> NamedModel:
    """Return a model with its whole tree, and add the origins of its keys.

    Raises:
        RefusedModels: the tree is not valid.
    """
    written, file = entry.written, entry.file
    merged = overlaid(overlaid(shared, entry.below), entry.own)
    try:
        settings = Settings.model_validate(with_lists(merged, Settings))
    except ValidationError as error:
        raise RefusedModels(f"model {written.name}: {explain(error, entry.spelt, ENTRY_SECTIONS)}") from error
    for name in SHARED_SECTIONS:
        origins |= {f"{entry.at}.settings.{key}": origins[key] for key in _below(name, origins)}
    for tree, origin in ((entry.below, file.name if file else ""), (entry.own, origins["models"])):
        origins |= {f"{entry.at}.settings.{key}": origin for key in leaves(tree, Settings)}
    stem = file.stem if file else ""
    return NamedModel(written.name, settings, stem, written.aliases, written.resident, is_default)


def _below(section: str, origins: Mapping[str, str]) -> list[str]:
    """Return the keys of a section."""
    return [key for key in origins if key.partition(".")[0] == section]


def overlaid(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Return a tree with the keys of another one over its own, mapping by mapping. Both are left as they are."""
    result = dict(below)
    for key, value in above.items():
        under = result.get(key)
        result[key] = overlaid(under, value) if isinstance(value, Mapping) and isinstance(under, Mapping) else value
    return result


def _check_server(server: Settings, models: Sequence[NamedModel]) -> None:
    """Refuse settings of the server that have no sense with a list.

    Raises:
        RefusedModels: names the setting and the remedy.
    """
    if server.server.model_names:
        raise RefusedModels("'server.model_names' has no effect on a list of models; models.<name>.aliases has them")
    if server.server.on_load_failure == "retry":
        raise RefusedModels(
            "'server.on_load_failure': retry has no effect on a list of models, since the next request for a model "
            "that could not be loaded loads it again; leave it out"
        )
    if len(models) > 1 and (spread := [model.name for model in models if model.settings.parallelism]):
        raise RefusedModels(
            f"'parallelism' ({', '.join(spread)}): there is one model a server with parallelism; "
            "leave it out, or list that model alone"
        )


def _check_agreement(server: Settings, models: Sequence[NamedModel]) -> None:
    """Refuse models that differ in what holds for the whole process.

    Raises:
        RefusedModels: names the setting and its value of each model.
    """
    for key, value in SAME_EVERYWHERE.items():
        _refuse_different(key, {model.name: value(model.settings) for model in models})
    for key, of_compiled in OF_COMPILED_MODELS.items():
        compiled = [(model.name, model.settings.compile) for model in models]
        _refuse_different(key, {name: of_compiled(found) for name, found in compiled if found})
    if server.server.workers * server.gpus_per_worker > 1:
        # Each worker sees its own GPUs alone unless the device has a number (gpus.py).
        _refuse_different("model.device", {model.name: model.settings.model.device for model in models})


def _refuse_different(key: str, by_model: Mapping[str, object]) -> None:
    if len(set(by_model.values())) > 1:
        said = ", ".join(f"{name} has {'none' if value is None else value}" for name, value in by_model.items())
        raise RefusedModels(
            f"'{key}' holds for all models of a process, but {said}; give all the same in models.<name>.settings.{key}"
        )


def _with_default(server: Settings, models: Sequence[NamedModel]) -> Settings:
    """Return the server's settings with the default model's sections, and the greatest of the limits that all share."""
    default = models[0].settings
    greatest = {name: max(getattr(model.settings.limits, name) for model in models) for name in GREATEST_LIMITS}
    sections = {name: getattr(default, name) for name in ENTRY_SECTIONS}
    return server.model_copy(update={**sections, "limits": default.limits.model_copy(update=greatest)})
