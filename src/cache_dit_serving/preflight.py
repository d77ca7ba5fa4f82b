"""Checks of a model before it loads: its path, the hub, and the device's abilities."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

from cache_dit_serving.config import folder, hub
from cache_dit_serving.config.settings import EMBEDDED_MODEL, LoraSettings, ModelSettings, Settings
from cache_dit_serving.config.sources import Sources, UnusableSource, sources_of, unreachable
from cache_dit_serving.errors import ConfigError, LoadError
from cache_dit_serving.loras.locate import locate
from cache_dit_serving.loras.lora_file import read_lora_file
from cache_dit_serving.model_folder.broken import BrokenFolder
from cache_dit_serving.model_folder.contents import folder_of, read_model
from cache_dit_serving.safetensors_header import UnreadableFile

logger = logging.getLogger(__name__)
SOURCES = Path(__file__).resolve().parents[1]
"""Folder that holds the package."""
DEVICE_CHECK_S = 120
"""Time limit of the device check, seconds. It imports torch and diffusers, which is slow on a busy machine."""


def check(settings: Settings) -> None:
    """Refuse a start that cannot succeed.

    Raises:
        ConfigError: the model or a LoRA is missing, or the device lacks an ability; names the setting.
    """
    check_path(settings.model)
    for lora in settings.model.loras:
        _check_lora(lora)
    if _wants_something_of_the_device(settings):
        check_device()


def check_sources(model: ModelSettings) -> Sources:
    """Refuse files that cannot be loaded, and a transformer without a base. Return the places that are loaded from.

    Raises:
        ConfigError: names the setting, the file, its format and the remedy.
    """
    if model.path != EMBEDDED_MODEL and (why := folder.refusal(model.path)):
        raise ConfigError(f"model.path {model.path!r}: {why}")
    try:
        sources = sources_of(model)
    except UnusableSource as error:
        raise ConfigError(str(error)) from error
    if why := unreachable(sources, model.revision):
        raise ConfigError(why)
    return sources


def check_path(model: ModelSettings) -> None:
    """Refuse a missing model, and a folder or file that cannot be loaded. Of its weights only the headers are read.

    Raises:
        ConfigError: the path is neither the embedded model, nor a model's folder, nor an available hub id.
    """
    sources = check_sources(model)
    path = sources.location
    if path == EMBEDDED_MODEL:
        return
    key = "model.path" if path == model.path else "model.base"
    if why := folder.refusal(path):
        raise ConfigError(f"{key} {path!r}: {why}")
    if not folder.is_folder(path):
        if why := hub.refusal(path, model.revision, model.subfolder):
            raise ConfigError(f"{key} {path!r} {why}")
        return
    try:
        read_model(folder_of(path, model), model, sources)
    except BrokenFolder as error:
        raise ConfigError(f"{key} {path!r}: {error}") from error


def _check_lora(lora: LoraSettings) -> None:
    there = Path(lora.path).expanduser().exists() or folder.HUB_ID.fullmatch(lora.path)
    if not there:
        raise ConfigError(f"model.loras, {lora.name}: {lora.path!r} is neither a file or folder here nor a hub id")
    if not Path(lora.path).expanduser().exists():
        return  # a hub's, which is downloaded as the model loads
    try:
        file = locate(lora)
        read_lora_file(file)
    except LoadError as error:
        raise ConfigError(f"model.loras: {error}") from error
    except UnreadableFile as error:
        raise ConfigError(f"model.loras: LoRA {lora.name} ({file.name}): {error}") from error


def _wants_something_of_the_device(settings: Settings) -> bool:
    model = settings.model
    named = {model.device or "cpu", model.generator_device} != {"cpu"}
    asked = (model.offload, model.device_map, settings.quantize, settings.attention_backend)
    return named or any(each is not None for each in asked)


def check_device() -> None:
    """Refuse settings that the device does not support. A child process checks them, because torch must be imported.

    Raises:
        ConfigError: a setting is not supported; the message lists the supported values.
    """
    path = os.pathsep.join(filter(None, (str(SOURCES), os.environ.get("PYTHONPATH"))))
    words = [sys.executable, "-W", "ignore", "-m", "cache_dit_serving.pipeline.preflight"]
    environ = os.environ | {"PYTHONPATH": path}
    try:
        done = subprocess.run(words, env=environ, capture_output=True, text=True, timeout=DEVICE_CHECK_S, check=False)
    except subprocess.TimeoutExpired:
        logger.warning("the device is not checked beforehand: that took longer than %d s", DEVICE_CHECK_S)
        return
    if done.returncode == 2:
        raise ConfigError(done.stdout.strip().splitlines()[-1])
