"""Places of LoRA files: a file, a folder, a hub id, or a LoRA that ships with the embedded model."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError

from cache_dit_serving.config import hub
from cache_dit_serving.config.folder import is_dangling, is_file, is_folder, is_there
from cache_dit_serving.config.hub_file import HUB_ID, HubFile, hub_file
from cache_dit_serving.config.settings import LoraSettings
from cache_dit_serving.errors import LoadError
from cache_dit_serving.safetensors_header import UnreadableFile, refuse_pickle

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
    if is_file(str(path)):
        return path
    if not is_folder(str(path)):
        named = on_hub(settings)
        try:
            return hub.downloaded_file(named)
        except hub.NotOnHub as error:
            raise LoadError(f"LoRA {settings.name}: {named.hub_id} {error}") from error
        except UnreadableFile as error:
            raise LoadError(f"LoRA {settings.name} ({named.file_name}): {error}") from error
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
    for file in sorted(path.iterdir()):
        try:
            refuse_pickle(file.name)
        except UnreadableFile as error:
            raise LoadError(f"LoRA {settings.name} ({file.name}): {error}") from error
    raise LoadError(f"LoRA {settings.name}: the folder has no .safetensors file")


def adapter_config(file: Path, settings: LoraSettings) -> Path | None:
    """Return PEFT's configuration beside the weights, downloaded if the LoRA is a hub's; None: there is none."""
    beside = file.with_name(ADAPTER_CONFIG)
    if beside.is_file():
        return beside
    if is_there(settings.path):
        return None
    weights = on_hub(settings)
    config = PurePosixPath(weights.name).with_name(ADAPTER_CONFIG)
    try:
        return Path(huggingface_hub.hf_hub_download(weights.hub_id, str(config), revision=weights.revision))
    except (HfHubHTTPError, OSError, ValueError):
        return None


def on_hub(settings: LoraSettings) -> HubFile:
    """Return the place of a LoRA's file on the hub: the one that is named, or else a usual or the only one.

    Raises:
        LoadError: the path names nothing on the hub, or several files, or the hub does not give it.
    """
    if (named := hub_file(settings.path)) is not None:
        return named
    hub_id = settings.path
    if is_dangling(hub_id):
        raise LoadError(f"LoRA {settings.name}: its path is a link without a target on the server")
    if not HUB_ID.fullmatch(hub_id):
        raise LoadError(f"LoRA {settings.name}: its path is neither a file, a folder nor a hub id like owner/name")
    if settings.weight_name is not None:
        return HubFile(hub_id, settings.weight_name)
    for name in USUAL_FILES:
        if hub.cached(hub_id, name, None):
            return HubFile(hub_id, name)
    try:
        names = [name for name in hub.listing(hub_id, None) if name.endswith(".safetensors")]
    except hub.NotOnHub as error:
        raise LoadError(f"LoRA {settings.name}: {hub_id} {error}") from error
    usual = [name for name in USUAL_FILES if name in names]
    if not usual and len(names) != 1:
        count = f"{len(names)} .safetensors files; say which by weight_name" if names else "no .safetensors file"
        raise LoadError(f"LoRA {settings.name}: {hub_id} has {count}")
    return HubFile(hub_id, (usual or names)[0])
