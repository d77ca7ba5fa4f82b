"""A model's small files on the hub, read from the local cache if it has them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from cache_dit_serving.config.folder import INDEX, ReadJson, in_folder

HUB_S = 10
"""Timeout of the hub's first answer, seconds."""
MOST_NAMED = 5
"""Maximum number of folders that an error names."""
NEVER_LOADED = ["*.bin", "*.ckpt", "*.h5", "*.msgpack", "*.onnx", "*.pb", "*.pt", "*.pth"]

logger = logging.getLogger(__name__)


def cached(hub_id: str, name: str, revision: str | None) -> Path | None:
    """Return the path of a hub id's file in the local cache; None if it is not there."""
    import huggingface_hub

    found = huggingface_hub.try_to_load_from_cache(hub_id, name, revision=revision)
    return Path(found) if isinstance(found, str) else None


def refusal(hub_id: str, revision: str | None, subfolder: str | None = None) -> str | None:
    """Return the reason that a model cannot be loaded, as a phrase that follows its hub id.

    None if the hub has it or the local cache holds its index.
    """
    index = f"{subfolder}/{INDEX}" if subfolder else INDEX
    import huggingface_hub
    from huggingface_hub import errors

    if cached(hub_id, index, revision):
        return None
    try:
        files = huggingface_hub.model_info(hub_id, revision=revision, timeout=HUB_S).siblings or []
    except errors.GatedRepoError:
        return "has a gate; accept its terms on the hub and set HF_TOKEN"
    except errors.RevisionNotFoundError:
        return f"has no revision {revision} on the hub"
    except errors.RepositoryNotFoundError:
        return "is neither a folder here nor known to the hub (a private model needs HF_TOKEN)"
    except errors.OfflineModeIsEnabled:
        return "is not in the hub's cache here, and HF_HUB_OFFLINE forbids a download"
    except Exception as error:  # noqa: BLE001 (whatever the network does)
        return (
            f"is neither a folder here nor in the hub's cache, and {huggingface_hub.constants.ENDPOINT} cannot be "
            f"reached ({type(error).__name__}); name a folder, or check the network and HF_ENDPOINT"
        )
    if not any(file.rfilename == index for file in files):
        inner = sorted(
            {file.rfilename.removesuffix(f"/{INDEX}") for file in files if file.rfilename.endswith(f"/{INDEX}")}
        )
        others = f"; its folders {', '.join(inner[:MOST_NAMED])} have one: name one by model.subfolder" if inner else ""
        return f"has no {index} on the hub{others or ': it is no pipeline of diffusers'}"
    return None


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
