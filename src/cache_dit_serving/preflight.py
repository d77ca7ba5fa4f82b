"""Checks before anything loads: the model's path, the hub, the database of jobs, and the device's abilities."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from cache_dit_serving.config import folder, hub
from cache_dit_serving.config.models import NamedModel
from cache_dit_serving.config.settings import (
    EMBEDDED_MODEL,
    JobsSettings,
    LoraSettings,
    ModelSettings,
    OutputSettings,
    Settings,
)
from cache_dit_serving.config.sources import NotDownloaded, Sources, UnusableSource, sources_of, unreachable
from cache_dit_serving.errors import ConfigError, LoadError
from cache_dit_serving.loras.locate import SHIPPED, locate, on_hub
from cache_dit_serving.loras.lora_file import lora_file_of, read_lora_file
from cache_dit_serving.media.c2pa_signer import C2paSigner
from cache_dit_serving.model_folder.broken import BrokenFolder
from cache_dit_serving.model_folder.contents import folder_of, read_component_folders, read_model
from cache_dit_serving.model_folder.variant import variant_on_hub
from cache_dit_serving.safetensors_header import UnreadableFile

logger = logging.getLogger(__name__)
SOURCES = Path(__file__).resolve().parents[1]
"""Folder that holds the package."""
DEVICE_CHECK_S = 120
"""Time limit of the device check, seconds. It imports torch and diffusers, which is slow on a busy machine."""


def check(settings: Settings, models: Sequence[NamedModel] = ()) -> None:
    """Refuse a start that cannot succeed.

    Args:
        settings: the server's.
        models: its models; without any, the one of the settings.

    Raises:
        ConfigError: a model or a LoRA is missing, the database of jobs cannot be used, or the device lacks an ability;
            names the setting, and the model of several.
    """
    check_signing(settings.outputs)
    trees = [(model.label, model.settings) for model in models] or [("", settings)]
    wants_device = [_wants_something_of_the_device(tree, _checked(label, tree.model)) for label, tree in trees]
    check_database(settings.jobs)  # after what changes nothing: it may make tables
    if any(wants_device):
        check_device()


def _checked(label: str, model: ModelSettings) -> Sources | None:
    """Return the places that a model is loaded from, after the checks of its path and its LoRAs."""
    try:
        sources = check_path(model)
        check_loras(model)
    except ConfigError as error:
        raise ConfigError(f"{label}{error}") from error
    return sources


def check_signing(outputs: OutputSettings) -> None:
    """Refuse a certificate that cannot sign.

    Raises:
        ConfigError: names the file, the missing package or the reason.
    """
    if outputs.c2pa is not None:
        C2paSigner(outputs.c2pa)


def check_database(jobs: JobsSettings) -> None:
    """Refuse a database that cannot be used as it is configured; one that does not answer is for the workers to await.

    Its tables are made or brought up to date. SQLAlchemy and alembic, which take half a second, are imported only where
    the settings name one.

    Raises:
        ConfigError: names the reason and the remedy.
    """
    if jobs.database is None:
        return
    from cache_dit_serving.jobs.store.faults import UnusableDatabase
    from cache_dit_serving.jobs.store.store import JobStore

    try:
        JobStore(jobs.database).close()
    except UnusableDatabase as error:
        raise ConfigError(str(error)) from error
    except LoadError:
        pass  # the workers say so


def check_sources(model: ModelSettings) -> Sources | None:
    """Refuse files that cannot be loaded, and a transformer without a base. Return the places that are loaded from.

    None if that is known only after the download of a file.

    Raises:
        ConfigError: names the setting, the file, its format and the remedy.
    """
    if model.path != EMBEDDED_MODEL and (why := folder.refusal(model.path)):
        raise ConfigError(f"model.path {model.path!r}: {why}")
    try:
        sources = sources_of(model, download=False)
        read_component_folders(sources)
    except UnusableSource as error:
        raise ConfigError(str(error)) from error
    except NotDownloaded:
        return None
    if why := unreachable(sources, model.revision):
        raise ConfigError(why)
    return sources


def check_path(model: ModelSettings) -> Sources | None:
    """Refuse a missing model, and a folder or file that cannot be loaded. Of its weights only the headers are read.

    Returns :func:`check_sources`.

    Raises:
        ConfigError: the path is neither the embedded model, nor a model's folder, nor an available hub id.
    """
    sources = check_sources(model)
    if sources is None or (path := sources.location) == EMBEDDED_MODEL:
        return sources
    key = "model.path" if path == model.path else "model.base"
    if why := folder.refusal(path):
        raise ConfigError(f"{key} {path!r}: {why}")
    if not folder.is_folder(path) and (why := hub.refusal(path, model.revision, model.subfolder)):
        raise ConfigError(f"{key} {path!r} {why}")
    try:
        if folder.is_folder(path):
            read_model(folder_of(path, model), model, sources)
        elif model.subfolder is None:
            variant_on_hub(path, model, sources)
    except BrokenFolder as error:
        raise ConfigError(f"{key} {path!r}: {error}") from error
    return sources


def check_loras(model: ModelSettings) -> None:
    """Refuse LoRAs that do not exist, are damaged or of a format that is not loaded. Nothing is downloaded.

    Raises:
        ConfigError: names the LoRA and the remedy.
    """
    for lora in model.loras:
        _check_lora(lora)


def _check_lora(lora: LoraSettings) -> None:
    try:
        if not folder.is_there(lora.path) and not lora.path.startswith(SHIPPED):
            _check_hub_lora(lora)
            return
        file = locate(lora)
    except LoadError as error:
        raise ConfigError(f"model.loras: {error}") from error
    try:
        read_lora_file(file)
    except UnreadableFile as error:
        raise ConfigError(f"model.loras: LoRA {lora.name} ({file.name}): {error}") from error


def _check_hub_lora(lora: LoraSettings) -> None:
    named = on_hub(lora)
    try:
        hub.check_file(named)
        if (there := hub.cached(*named)) is not None:
            read_lora_file(there)
        elif (header := hub.header_on_hub(named)) is not None:
            lora_file_of(Path(named.file_name).stem, header)
    except hub.NotOnHub as error:
        raise LoadError(f"LoRA {lora.name}: {named.hub_id} {error}") from error
    except UnreadableFile as error:
        raise LoadError(f"LoRA {lora.name} ({named.file_name}): {error}") from error


def _wants_something_of_the_device(settings: Settings, sources: Sources | None) -> bool:
    if sources is not None and any(each.file and each.file.svdquant for each in sources.components.values()):
        return True
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
