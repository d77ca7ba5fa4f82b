"""Launcher with the flags of cache_dit.serve: `cache-dit-serve --model-path ... --cache`.

It translates its flags to environment variables of the settings tree, then replaces its process by `bentoml serve`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from cache_dit_serving.cli.flags import FLAGS, Heading, flag_of, idle_flags, parser, settings_given
from cache_dit_serving.config.acceleration import ALIASES, BITSANDBYTES
from cache_dit_serving.config.catalog import BUNDLE_ROOT
from cache_dit_serving.config.config_file import with_own_names
from cache_dit_serving.config.folder import is_there
from cache_dit_serving.config.model_entry import ModelEntry
from cache_dit_serving.config.models import ENTRY_SECTIONS, UNSHARED_SECTIONS, overlaid
from cache_dit_serving.config.reading import Resolved, chosen_config, load_settings, resolve
from cache_dit_serving.config.settings import EMBEDDED_MODEL, Settings
from cache_dit_serving.config.variables import (
    CONFIG_VARIABLE,
    MODEL_BASE_VARIABLE,
    MODEL_PATH_VARIABLE,
    MODELS_VARIABLE,
    ORIGINS_VARIABLE,
    unquoted_variables,
    variable_of,
)
from cache_dit_serving.errors import ConfigError
from cache_dit_serving.gpus import VISIBLE, visible_gpus
from cache_dit_serving.logs import configure_logs, configured_format
from cache_dit_serving.section import Section
from cache_dit_serving.supervisor import check_port, fail

logger = logging.getLogger(__name__)


def environment_of(flags: argparse.Namespace, environ: Mapping[str, str]) -> dict[str, str]:
    """Return `environ` extended by the variables that give the settings of the flags.

    Raises:
        ConfigError: no model is named, a flag has no effect without another one, or the settings are invalid.
    """
    result = {**environ, **unquoted_variables(environ)}
    noted: dict[str, str] = {}

    def put(key: str, value: str, origin: str) -> None:
        result[variable_of(key)] = value
        noted[variable_of(key)] = origin

    result[CONFIG_VARIABLE], recognised = _named_config(flags, result, noted)
    if flags.device:
        # Otherwise BentoML hides every GPU but the first from the worker, and cuda:1 would not exist.
        result.setdefault("BENTOML_DISABLE_GPU_ALLOCATION", "1")
    given = settings_given(flags) | _components(flags) | _loras(flags) | _parallelism(flags)
    if {"model.offload", "model.device_map"} <= given.keys():
        # The old server accepted both, and with several GPUs used only the device map.
        del given["model.offload"]
        what = "--device-map already keeps in the computer's memory what does not fit on the GPUs"
        logger.warning("%s: --enable-cpu-offload adds nothing", what)
    _refuse_flags_of_models(flags, given, result)
    cache_flags = [leaf.partition(".")[2] for leaf in given if leaf.startswith("cache.")]
    uncached = load_settings(result).cache is None
    if cache_flags and not flags.cache and (uncached or recognised):
        raise ConfigError(f"{', '.join(cache_flags)} would have no effect without --cache")
    if flags.cache and not cache_flags and uncached:
        put("cache", "{}", "--cache")
    if recognised and not flags.cache and not uncached:
        # The old server's rule: no cache without --cache. Requests may still choose a speed of the configuration.
        put("speeds.default", "lossless", "the launcher, since there is no --cache")
    if (flags.cache or cache_flags) and load_settings(result).speeds.default:
        # Otherwise the default speed would override the cache flags for a request without speed and cache.
        put("speeds.default", "null", "the launcher, since there are flags of the cache")
    for leaf, value in given.items():
        put(leaf, value if isinstance(value, str) else json.dumps(value), flag_of(leaf, flags))
    resolved = resolve(result | {ORIGINS_VARIABLE: json.dumps(noted)})
    if "unsupported_fields" not in resolved.settings.server.model_fields_set:
        # The old server ignored such fields, and this command is for its users.
        put("server.unsupported_fields", "warn", "the launcher")
    # bentoml serve runs in the bundle's folder, so relative paths would change their meaning.
    for key, value in _absolute_paths(resolved):
        put(key, value, noted.get(variable_of(key)) or resolved.origin(key))
    return result | {ORIGINS_VARIABLE: json.dumps(noted)}


def _named_config(flags: argparse.Namespace, environ: Mapping[str, str], noted: dict[str, str]) -> tuple[str, bool]:
    """Return the configuration's name, and True if it was found by the model's path. The reason goes into `noted`.

    Raises:
        ConfigError: neither a model nor a configuration is named.
    """
    config = flags.config or (None if flags.model_path else environ.get(CONFIG_VARIABLE))
    path = flags.model_path or environ.get(MODEL_PATH_VARIABLE)
    if config:
        noted[CONFIG_VARIABLE] = "--config names it" if flags.config else f"{CONFIG_VARIABLE} names it"
        return (str(Path(config).absolute()) if Path(config).is_file() else config), False
    if not path and environ.get(MODELS_VARIABLE):
        return "", False
    if not path:
        raise ConfigError(
            "say what to serve: --model-path with a folder or hub id, or --config with a name that "
            "`cache-dit-serving models` lists"
        )
    named = {CONFIG_VARIABLE: "", MODEL_PATH_VARIABLE: path}
    if flags.model_base:
        named[MODEL_BASE_VARIABLE] = flags.model_base
    config, noted[CONFIG_VARIABLE] = chosen_config({**environ, **named})
    logger.info("configuration %s: %s", config, noted[CONFIG_VARIABLE])
    return config, True


def or_embedded(flags: argparse.Namespace, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment, with the embedded model's configuration unless it or the flags name a model."""
    names_one = flags.model_path or environ.get(MODEL_PATH_VARIABLE) or environ.get(MODELS_VARIABLE)
    return dict(environ) if names_one else {CONFIG_VARIABLE: EMBEDDED_MODEL, **environ}


def _refuse_flags_of_models(flags: argparse.Namespace, given: Mapping[str, object], environ: Mapping[str, str]) -> None:
    """Refuse flags of a model's sections together with a list of models.

    Raises:
        ConfigError: names the flags, and the place of such settings.
    """
    idle = ["--cache"] if flags.cache else []
    idle += [flag_of(leaf, flags) for leaf in given if leaf.partition(".")[0] in UNSHARED_SECTIONS]
    if idle and resolve(environ).settings.models:
        raise ConfigError(
            f"{', '.join(idle)}: the configuration lists models; models.<name>.settings has such settings"
        )


def _absolute_paths(resolved: Resolved) -> Iterator[tuple[str, str]]:
    """Yield (dotted key, text) for every path in the settings, made absolute from this process's folder."""
    settings, listed = resolved.settings, {model.name: model.settings for model in resolved.models}
    sections = [name for name, _ in settings if not settings.models or name not in ENTRY_SECTIONS]
    if settings.models:
        yield "models", json.dumps([_absolute_entry(entry, listed[entry.name]) for entry in settings.models])
    for key, value in _with_paths(settings, sections):
        yield key, value if isinstance(value, str) else json.dumps(value)


def _absolute_entry(entry: ModelEntry, settings: Settings) -> dict[str, Any]:
    """Return an entry of the list of models with the absolute paths of its model in its own settings."""
    own = with_own_names(entry.settings)
    for key, value in _with_paths(settings, ENTRY_SECTIONS):
        section, _, name = key.partition(".")
        own = overlaid(own, {section: {name: value}})
    return entry.model_copy(update={"settings": own}).model_dump(mode="json", exclude_defaults=True)


def _with_paths(settings: Settings, sections: Sequence[str]) -> Iterator[tuple[str, str | list[str] | dict[str, str]]]:
    """Yield (dotted key, value) for every path in some sections, made absolute."""

    def absolute(path: str | Path) -> str:
        return str(Path(path).expanduser().absolute())

    model = settings.model
    if "model" in sections:
        for key, path in (("path", model.path), ("base", model.base)):
            if path not in (None, EMBEDDED_MODEL) and is_there(path):  # else a hub id
                yield f"model.{key}", absolute(path)
        there = {name: absolute(path) for name, path in model.components.items() if is_there(path)}
        if there:
            yield "model.components", model.components | there
    for name in sections:
        section = getattr(settings, name)
        for key, value in section if isinstance(section, Section) else ():
            if isinstance(value, Path):
                yield f"{name}.{key}", absolute(value)
            elif isinstance(value, tuple) and value and all(isinstance(each, Path) for each in value):
                yield f"{name}.{key}", [absolute(each) for each in value]


def _parallelism(flags: argparse.Namespace) -> dict[str, object]:
    """Return the settings that the flags of parallelism fill, by dotted key.

    Raises:
        ConfigError: such a flag is given without one that says what the GPUs share.
    """
    others = [flag for flag in FLAGS if flag.group is Heading.PARALLELISM and flag.state == "works"]
    given = [flag for flag in others if getattr(flags, flag.dest)]
    if not flags.parallel_type:
        needless = {"cfg_parallel", "nodes", "rendezvous"} if flags.cfg_parallel else set()
        if idle := [flag.names[0] for flag in given if flag.dest not in needless]:
            raise ConfigError(f"{idle[0]} would have no effect without --parallel-type")
        return {}
    extra = [part for part in ("vae", "text_encoder") if getattr(flags, f"parallel_{part}")]
    size = flags.parallel_size or max(2, max(2, _gpus()) * (flags.nodes or 1) // (flags.cfg_parallel or 1))
    return {f"parallelism.{flags.parallel_type}_size": size} | (
        {"parallelism.extra_parallel_modules": extra} if extra else {}
    )


def _gpus() -> int:
    """Return the number of GPUs that the server can see on this machine."""
    if VISIBLE in os.environ:
        return len(visible_gpus(os.environ))
    from bentoml._internal.resource import system_resources

    return len(system_resources().get("nvidia.com/gpu", []))


def _components(flags: argparse.Namespace) -> dict[str, object]:
    """Return the setting that --component fills.

    Raises:
        ConfigError: a value is not NAME=PATH_OR_ID, or names a component twice.
    """
    found: dict[str, str] = {}
    for text in flags.component or ():
        name, equals, path = text.partition("=")
        if not (name and equals and path):
            raise ConfigError(f"--component {text}: write NAME=PATH_OR_ID, such as vae=./my-vae")
        if name in found:
            raise ConfigError(f"--component: {name} is given twice")
        found[name] = path
    return {"model.components": found} if found else {}


def _loras(flags: argparse.Namespace) -> dict[str, object]:
    """Return the settings that the flags of a LoRA fill, by dotted key. Its name comes from its file or folder.

    Raises:
        ConfigError: such a flag is given without --lora-path, or two of them contradict each other.
    """
    idle = [name for name in ("lora_name", "disable_fuse_lora", "fuse_lora") if getattr(flags, name)]
    if not flags.lora_path:
        if idle:
            raise ConfigError(f"--{idle[0].replace('_', '-')} would have no effect without --lora-path")
        return {}
    if flags.disable_fuse_lora and flags.fuse_lora:
        raise ConfigError("--fuse-lora and --disable-fuse-lora contradict each other")
    path = Path(flags.lora_path).expanduser()
    where = str(path.absolute()) if path.exists() else flags.lora_path
    # A LoRA cannot be fused into weights that diffusers quantises while it loads them.
    fuse = flags.fuse_lora or not (flags.disable_fuse_lora or quantised_as_loaded(flags))
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(flags.lora_name or flags.lora_path).stem).strip("-_") or "lora"
    lora = {"name": name[:64], "path": where, "weight_name": flags.lora_name, "fuse": fuse}
    return {"model.loras": [lora]}


def quantised_as_loaded(flags: argparse.Namespace) -> bool:
    """Return whether diffusers quantises the weights while it loads them."""
    by_type = ALIASES.get(flags.quantize_type or "", flags.quantize_type) == BITSANDBYTES
    return by_type or flags.pipeline_quant_config_path is not None


def command(flags: argparse.Namespace) -> list[str]:
    """Return the command line of the `bentoml serve` that replaces this process."""
    target = str(BUNDLE_ROOT)
    return [
        *(sys.executable, "-m", "bentoml", "serve", "service:CacheDiTServing", "--working-dir", target),
        *("--host", flags.host, "--port", str(flags.port)),
    ]


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Check the settings, then become `bentoml serve`. A mistake ends the process with one line and exit status 2."""
    flags = parser().parse_args(arguments)
    configure_logs("INFO", configured_format(), "launcher")
    try:
        environ = environment_of(flags, os.environ)
        check_port(flags.host, flags.port)
    except ConfigError as error:
        fail(str(error))
    if idle := idle_flags(flags):
        logger.warning("without effect, as in cache_dit.serve: %s", ", ".join(idle))
    words = command(flags)
    os.execve(words[0], words, environ)


if __name__ == "__main__":
    main()
