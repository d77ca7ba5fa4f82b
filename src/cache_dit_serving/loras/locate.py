"""Places of LoRA files: a file, a folder, a hub id, or a LoRA that ships with the embedded model."""

from __future__ import annotations

import logging
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError

from cache_dit_serving.config.settings import LoraSettings
from cache_dit_serving.errors import LoadError

logger = logging.getLogger(__name__)

USUAL_FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")
"""File names under which diffusers and PEFT save a LoRA; the first that is there is taken from several files."""
ADAPTER_CONFIG = "adapter_config.json"
"""File beside the weights of a LoRA that PEFT saved, which has its alpha."""
SHIPPED = "embedded/"
"""Prefix of the path of a LoRA that ships with the embedded model."""
EMBEDDED_LORAS = Path(__file__).resolve().parents[1] / "embedded" / "loras"


def locate(settings: LoraSettings) -> Path:
    """Return the file of a LoRA, which its path names itself, by its folder or by a hub id.

    Raises:
        LoadError: there is no such file, or a folder has several and none is chosen.
    """
    path = Path(settings.path).expanduser()
    if settings.path.startswith(SHIPPED):
        path = EMBEDDED_LORAS / f"{settings.path.removeprefix(SHIPPED)}.safetensors"
    if path.is_file():
        return path
    if not path.is_dir():
        return _from_hub(settings)
    if settings.weight_name is not None:
        if not (path / settings.weight_name).is_file():
            raise LoadError(f"LoRA {settings.name}: the folder has no file {settings.weight_name}")
        return path / settings.weight_name
    files = sorted(path.glob("*.safetensors"))
    if usual := [path / name for name in USUAL_FILES if path / name in files]:
        return usual[0]
    if len(files) == 1:
        return files[0]
    if files:
        raise LoadError(
            f"LoRA {settings.name}: the folder has {len(files)} .safetensors files; say which by weight_name"
        )
    others = sorted(file.name for file in path.glob("*.bin"))
    converted = f"; {others[0]} is a pickle, to be converted to safetensors first" if others else ""
    raise LoadError(f"LoRA {settings.name}: the folder has no .safetensors file{converted}")


def adapter_config(file: Path, settings: LoraSettings) -> Path | None:
    """Return PEFT's configuration beside the weights, downloaded if the LoRA is a hub's; None: there is none."""
    beside = file.with_name(ADAPTER_CONFIG)
    if beside.is_file():
        return beside
    if Path(settings.path).expanduser().exists():
        return None
    try:
        return Path(huggingface_hub.hf_hub_download(settings.path, ADAPTER_CONFIG))
    except (HfHubHTTPError, OSError, ValueError):
        return None


def _from_hub(settings: LoraSettings) -> Path:
    failure: Exception | None = None
    for name in (settings.weight_name,) if settings.weight_name else USUAL_FILES:
        try:
            return Path(huggingface_hub.hf_hub_download(settings.path, name))
        except Exception as error:  # noqa: BLE001 (the hub's client raises errors of several libraries)
            failure = failure or error
    logger.error("the LoRA %s cannot be found", settings.name, exc_info=failure)
    message = "its path is neither a file, a folder nor a hub id that can be read"
    raise LoadError(f"LoRA {settings.name}: {message}") from failure
