"""A model's small files on the hub, read from the local cache if it has them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from cache_dit_serving.config.folder import INDEX, ReadJson, in_folder
from cache_dit_serving.config.hub_file import HubFile
from cache_dit_serving.safetensors_header import (
    SafetensorsHeader,
    TensorEntry,
    refuse_pickle,
)

HUB_S = 10
"""Timeout of the hub's first answer, seconds."""
MOST_NAMED = 5
"""Maximum number of folders that an error names."""
NEVER_LOADED = ["*.bin", "*.ckpt", "*.h5", "*.msgpack", "*.onnx", "*.pb", "*.pt", "*.pth"]

LOADED = (".safetensors", ".gguf")
"""Suffixes of the files of weights that are loaded."""

logger = logging.getLogger(__name__)


def cached(hub_id: str, name: str, revision: str | None) -> Path | None:
    """Return the path of a hub id's file in the local cache; None if it is not there."""
    import huggingface_hub

    found = huggingface_hub.try_to_load_from_cache(hub_id, name, revision=revision)
    return Path(found) if isinstance(found, str) else None


def cached_names(hub_id: str, revision: str | None) -> tuple[str, ...]:
    """Return the names of a model's files in the local cache; none if its index is not there."""
    index = cached(hub_id, INDEX, revision)
    if index is None:
        return ()
    folder = index.parent
    return tuple(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


class NotOnHub(Exception):
    """The hub does not give a model or a file. The message is a phrase that follows the hub id, with the remedy."""


def listing(hub_id: str, revision: str | None) -> tuple[str, ...]:
    """Return the names of a hub id's files, as the hub lists them.

    Raises:
        NotOnHub: the hub has no such model or revision, does not give it, or cannot be reached.
    """
    import huggingface_hub
    from huggingface_hub import errors

    try:
        files = huggingface_hub.model_info(hub_id, revision=revision, timeout=HUB_S).siblings or []
    except errors.GatedRepoError as error:
        raise NotOnHub("has a gate; accept its terms on the hub and set HF_TOKEN") from error
    except errors.RevisionNotFoundError as error:
        raise NotOnHub(f"has no revision {revision} on the hub") from error
    except errors.RepositoryNotFoundError as error:
        raise NotOnHub("is neither a folder here nor known to the hub (a private model needs HF_TOKEN)") from error
    except errors.OfflineModeIsEnabled as error:
        raise NotOnHub("is not in the hub's cache here, and HF_HUB_OFFLINE forbids a download") from error
    except Exception as error:
        raise NotOnHub(
            f"is neither a folder here nor in the hub's cache, and {huggingface_hub.constants.ENDPOINT} cannot be "
            f"reached ({type(error).__name__}); name a folder, or check the network and HF_ENDPOINT"
        ) from error
    return tuple(file.rfilename for file in files)


def refusal(hub_id: str, revision: str | None, subfolder: str | None = None) -> str | None:
    """Return the reason that a model cannot be loaded, as a phrase that follows its hub id.

    None if the hub has it or the local cache holds its index.
    """
    index = f"{subfolder}/{INDEX}" if subfolder else INDEX
    if cached(hub_id, index, revision):
        return None
    try:
        names = listing(hub_id, revision)
    except NotOnHub as error:
        return str(error)
    if index not in names:
        inner = sorted({name.removesuffix(f"/{INDEX}") for name in names if name.endswith(f"/{INDEX}")})
        others = f"; its folders {', '.join(inner[:MOST_NAMED])} have one: name one by model.subfolder" if inner else ""
        return f"has no {index} on the hub{others or ': it is no pipeline of diffusers'}"
    return None


def check_file(file: HubFile) -> None:
    """Check that the hub or the local cache has a file.

    Raises:
        NotOnHub: neither has it.
        UnreadableFile: it is a pickle.
    """
    refuse_pickle(file.name)
    if cached(*file) is not None:
        return
    names = listing(file.hub_id, file.revision)
    if file.name not in names:
        others = [name for name in names if name.endswith(LOADED)][:MOST_NAMED]
        there = f"it has {', '.join(others)}" if others else f"it has no {' or '.join(LOADED)} file"
        raise NotOnHub(f"has no file {file.name}; {there}")


def downloaded_file(file: HubFile) -> Path:
    """Return the path of a file in the local cache, after a download if it is not there.

    Raises:
        NotOnHub: the hub does not give it.
        UnreadableFile: it is a pickle.
    """
    check_file(file)
    if (there := cached(*file)) is not None:
        return there
    import huggingface_hub

    try:
        return Path(huggingface_hub.hf_hub_download(file.hub_id, file.name, revision=file.revision))
    except Exception as error:
        logger.warning("%s of %s cannot be downloaded", file.name, file.hub_id, exc_info=True)
        raise NotOnHub(f"does not give {file.name} ({type(error).__name__}); try again") from error


def header_on_hub(file: HubFile) -> SafetensorsHeader | None:
    """Return the header of a safetensors file, without a download of its tensors; None: it cannot be read there."""
    if not file.name.endswith(".safetensors"):
        return None
    import huggingface_hub

    try:
        found = huggingface_hub.parse_safetensors_file_metadata(file.hub_id, file.name, revision=file.revision)
    except Exception as error:  # noqa: BLE001 (reading the file after its download says what is wrong)
        logger.info("the header of %s of %s cannot be read: %s", file.name, file.hub_id, type(error).__name__)
        return None
    tensors = {
        name: TensorEntry(info.dtype, tuple(info.shape), info.data_offsets[1] - info.data_offsets[0])
        for name, info in found.tensors.items()
    }
    return SafetensorsHeader(tensors, found.metadata)


def downloaded(hub_id: str, revision: str | None, subfolder: str) -> Path:
    """Return the folder of a model within a hub id's files, after a download of what the local cache lacks.

    Raises:
        OSError: the hub cannot be reached, or does not give the files. huggingface_hub's errors are all of this class.
    """
    import huggingface_hub

    snapshot = huggingface_hub.snapshot_download(
        hub_id, revision=revision, allow_patterns=f"{subfolder}/*", ignore_patterns=NEVER_LOADED
    )
    return Path(snapshot) / subfolder


@cache
def on_hub(hub_id: str, revision: str | None) -> ReadJson:
    """Return a reader of a hub id's JSON files, which prefers the local cache."""

    @cache
    def read(name: str) -> Mapping[str, Any] | None:
        import huggingface_hub

        for local in (True, False):
            try:
                if not local and name == INDEX:
                    # Fails at once without a network, where a download retries for 20 seconds.
                    huggingface_hub.model_info(hub_id, revision=revision, timeout=HUB_S)
                file = huggingface_hub.hf_hub_download(hub_id, name, revision=revision, local_files_only=local)
            except Exception as error:  # noqa: BLE001 (offline, no such model, no access: loading it will say so)
                logger.info("%s of %s cannot be read: %s", name, hub_id, type(error).__name__)
                continue
            path = Path(file)
            return in_folder(path.parent)(path.name)
        return None

    return read
