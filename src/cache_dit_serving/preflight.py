"""What can be known of a model before anything loads: its path, the hub, and what the device can do."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

from cache_dit_serving.config import folder, hub
from cache_dit_serving.config.settings import EMBEDDED_MODEL, LoraSettings, Settings
from cache_dit_serving.errors import ConfigError

logger = logging.getLogger(__name__)
SOURCES = Path(__file__).resolve().parents[1]
DEVICE_CHECK_S = 120
"""Seconds for a process that imports torch and diffusers on a busy machine."""


def check(settings: Settings) -> None:
    """Refuse a start that cannot succeed.

    Raises:
        ConfigError: saying why, with the setting's name.
    """
    check_path(settings.model.path, settings.model.revision)
    for lora in settings.model.loras:
        _check_lora(lora)
    if _wants_something_of_the_device(settings):
        check_device()


def check_path(path: str, revision: str | None) -> None:
    """Refuse a model that is not there.

    Raises:
        ConfigError: it is neither the embedded one, nor a folder, nor a hub id that can be had.
    """
    if path == EMBEDDED_MODEL:
        return
    if why := folder.refusal(path):
        raise ConfigError(f"model.path {path!r}: {why}")
    if not Path(path).expanduser().is_dir() and (why := hub.refusal(path, revision)):
        raise ConfigError(f"model.path {path!r} {why}")


def _check_lora(lora: LoraSettings) -> None:
    there = Path(lora.path).expanduser().exists() or folder.HUB_ID.fullmatch(lora.path)
    if not there:
        raise ConfigError(f"model.loras, {lora.name}: {lora.path!r} is neither a file or folder here nor a hub id")


def _wants_something_of_the_device(settings: Settings) -> bool:
    model = settings.model
    named = {model.device or "cpu", model.generator_device} != {"cpu"}
    asked = (model.offload, model.device_map, settings.quantize, settings.attention_backend)
    return named or any(each is not None for each in asked)


def check_device() -> None:
    """Refuse what the device cannot do, by a process that imports torch and ends again.

    Raises:
        ConfigError: naming what it can do.
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
