"""Contents of a path for `cache-dit-serving inspect`: a model's folder, a file of weights, a LoRA, or a hub id."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cache_dit_serving.checkpoints.checkpoint_file import CheckpointFile, Kind
from cache_dit_serving.checkpoints.svdquant import SvdquantLayers, svdquant_file_in
from cache_dit_serving.config import folder, hub
from cache_dit_serving.config.catalog import CatalogEntry, catalog, recognise
from cache_dit_serving.config.folder import INDEX
from cache_dit_serving.config.hub_file import HubFile, hub_file
from cache_dit_serving.config.reading import GENERIC_CONFIG
from cache_dit_serving.config.settings import EMBEDDED_MODEL
from cache_dit_serving.loras.lora_file import LoraFile, lora_file_of, read_lora_file
from cache_dit_serving.model_folder.broken import BrokenFolder
from cache_dit_serving.model_folder.contents import ModelFolder, read_folder
from cache_dit_serving.model_folder.unindexed import LORA_FILES
from cache_dit_serving.safetensors_header import BITS, UnreadableFile

EMBEDDED_FOLDER = Path(__file__).resolve().parents[1] / "embedded" / "emoji-flux"
SERVE = "cache-dit-serving serve"
GB = 1e9
DTYPE_BITS = {"float32": 32, "float16": 16, "bfloat16": 16}
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
"""Types that are converted to the configuration's dtype as they are loaded. Others are kept."""
BASE_MODEL = ("modelspec.architecture", "ss_base_model_version")
"""Metadata keys, by trainer, of the model that a LoRA is for."""


class Unservable(Exception):
    """A path cannot be served. The message is the launcher's line: the setting, the reason and the remedy."""


@dataclass(frozen=True)
class Inspected:
    """Contents of a path. The names of the fields are those of the JSON object."""

    path: str
    kind: str
    """`model`, `LoRA`, or the kind of a checkpoint."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What its headers say, by name."""
    components: tuple[Mapping[str, Any], ...] = ()
    configuration: str | None = None
    """Name of the configuration that it would be served with."""
    configuration_reason: str | None = None
    dtype: str | None = None
    """Data type that the configuration loads a model as."""
    memory_bytes: int | None = None
    """Size of the weights in the configuration's dtype, bytes; None if unknown."""
    largest_bytes: int | None = None
    """Size of the largest component in that dtype, bytes."""
    command: str | None = None
    """Command that serves it; None if this version does not."""
    problem: str | None = None
    """Reason that it cannot be served, if its kind is known."""


def inspect(path: str) -> Inspected:
    """Return the contents of a path, from headers and small files alone.

    Raises:
        Unservable: the path is broken, or nothing that can be served.
    """
    named = hub_file(path)
    try:
        at = Path(path).expanduser()
        if path == EMBEDDED_MODEL:
            return _model(path, EMBEDDED_FOLDER)
        if folder.is_folder(path):
            if (layers := svdquant_file_in(at)) is not None:
                return _checkpoint(path, CheckpointFile.read(layers))
            lora = _lora_in(at)
            return _lora(path, read_lora_file(lora)) if lora else _model(path, at)
        if at.is_file():
            return _file(path, at)
        if named is not None:
            return _hub_file(path, named)
    except (BrokenFolder, UnreadableFile) as error:
        raise Unservable(f"model.path {path!r}: {error}") from error
    except hub.NotOnHub as error:
        raise Unservable(f"model.path {path!r}: {named.hub_id if named else ''} {error}") from error
    except OSError as error:
        raise Unservable(f"model.path {path!r}: it cannot be read: {error.strerror}") from error
    except RuntimeError:  # `~user` of an unknown user, which the next line names
        pass
    if why := folder.refusal(path):
        raise Unservable(f"model.path {path!r}: {why}")
    return _hub_id(path)


def _model(path: str, at: Path) -> Inspected:
    configuration, why, entry = _configuration(path)
    dtype = entry.model.dtype if entry else "bfloat16"
    found = read_folder(at, dtype=dtype)
    return _of_folder(path, found, (configuration, why, entry), folder.in_folder(at)(INDEX) or {})


def _of_folder(
    path: str, found: ModelFolder, configured: tuple[str, str, CatalogEntry | None], index: Mapping[str, Any]
) -> Inspected:
    configuration, why, entry = configured
    dtype = entry.model.dtype if entry else "bfloat16"
    components: list[dict[str, Any]] = []
    loaded: list[int] = []
    for each in found.components:
        about: dict[str, Any] = {"name": each.name, "class": each.class_name}
        if each.weights is not None:
            sizes = each.weights.bytes_by_dtype
            about |= {"files": list(each.weights.files), "bytes": sum(sizes.values()), "dtypes": dict(sizes)}
            loaded.append(_loaded_bytes(sizes, dtype))
        components.append(about)
    facts = {
        "pipeline_class": found.pipeline_class,
        "task": entry.about.task if entry else None,
        "saved_from": source if isinstance(source := index.get("_name_or_path"), str) else None,
        "variant": found.variant,
        "bytes": sum(each.get("bytes", 0) for each in components),
    }
    return Inspected(
        path,
        "model",
        {name: value for name, value in facts.items() if value is not None},
        tuple(components),
        configuration,
        why,
        dtype,
        sum(loaded),
        max(loaded, default=0),
        _serving(path, entry),
    )


def _loaded_bytes(sizes: Mapping[str, int], dtype: str) -> int:
    """Return the size of tensors once they are loaded, bytes.

    Args:
        sizes: bytes in the files, by type.
    """
    return sum(size * DTYPE_BITS[dtype] // BITS[name] if name in FLOATS else size for name, size in sizes.items())


def _configuration(path: str) -> tuple[str, str, CatalogEntry | None]:
    """Return the name of a model's configuration, the reason for it, and its entry in the catalogue."""
    if path == EMBEDDED_MODEL:
        name, why = EMBEDDED_MODEL, "the embedded model has a configuration of its own"
    else:
        name, why = recognise(path)
    entry = next((entry for entry in catalog() if entry.name == name), None)
    return name or GENERIC_CONFIG, why, entry


def _serving(path: str, entry: CatalogEntry | None) -> str:
    if path == EMBEDDED_MODEL:
        return f"{SERVE} --config {EMBEDDED_MODEL}"
    return f"{SERVE} --model-path {shlex.quote(path)}" + (" --cache" if entry else "")


def _lora_in(at: Path) -> Path | None:
    """Return the file of a LoRA that a folder holds in place of a model; None if it holds none."""
    if (at / INDEX).exists():
        return None
    return next((at / name for name in LORA_FILES if (at / name).is_file() and name.endswith(".safetensors")), None)


def _lora(path: str, found: LoraFile) -> Inspected:
    metadata = found.header.metadata
    facts = {
        "format": str(found.format),
        "layers": dict(found.parts),
        "ranks": list(found.ranks),
        "alpha": found.alpha,
        "trigger_words": found.trigger_words,
        "trained_steps": found.sampling.steps,
        "trained_shift": found.sampling.shift,
        "base_model": next((metadata[key] for key in BASE_MODEL if metadata.get(key)), None) or _base_of(Path(path)),
        "bytes": found.header.size_bytes,
        "dtypes": dict(Counter(entry.dtype for entry in found.header.tensors.values())),
    }
    return Inspected(
        path,
        Kind.LORA,
        {name: value for name, value in facts.items() if value not in (None, [], {})},
        command=f"{SERVE} --model-path MODEL --lora-path {shlex.quote(path)}",
    )


def _base_of(path: Path) -> str | None:
    """Return the model that PEFT's configuration beside a LoRA names."""
    beside = path if path.is_dir() else path.parent
    try:
        named = json.loads((beside / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return named if isinstance(named, str) else None


def _file(path: str, at: Path) -> Inspected:
    """Return the contents of a file of weights.

    Raises:
        UnreadableFile: it is damaged, or no file of weights.
    """
    found = CheckpointFile.read(at)
    return _lora(path, read_lora_file(at)) if found.kind is Kind.LORA else _checkpoint(path, found)


def _hub_file(path: str, named: HubFile) -> Inspected:
    """Return the contents of a file on the hub, without a download.

    Raises:
        NotOnHub: the hub does not have it.
        UnreadableFile: it is damaged, or no file of weights, or in GGUF and not downloaded.
    """
    hub.check_file(named)
    if (there := hub.cached(*named)) is not None:
        return _file(path, there)
    header = hub.header_on_hub(named)
    if header is None:
        kind = "a GGUF file" if named.name.endswith(".gguf") else "this file"
        raise UnreadableFile(f"{named.file_name}: {kind} on the hub is read after its download alone")
    at = Path(named.file_name)
    found = CheckpointFile.of(at, header)
    return _lora(path, lora_file_of(at.stem, header)) if found.kind is Kind.LORA else _checkpoint(path, found)


def _checkpoint(path: str, found: CheckpointFile) -> Inspected:
    if found.kind is Kind.UNKNOWN:
        raise UnreadableFile(f"it is no model that is known: {found.described()}")
    if found.svdquant is not None:
        return _svdquant(path, found, found.svdquant)
    family = found.family
    facts = {
        "described": found.described(),
        "denoiser": family.denoiser if family else None,
        "pipeline_class": family.pipeline if family else None,
        "family": family.hub_id if family else None,
        "format": found.format,
        "parameters": found.parameters,
        "bytes": found.size_bytes,
        "dtypes": dict(found.dtypes),
    }
    configured = _configuration(family.hub_id) if family else None
    problem = found.refusal or folder.refusal(path)
    base = f"CACHE_DIT_SERVING__MODEL__BASE={family.hub_id} " if family and found.kind is not Kind.PIPELINE else ""
    return Inspected(
        path,
        str(found.kind),
        {name: value for name, value in facts.items() if value is not None},
        configuration=configured[0] if configured else None,
        configuration_reason=configured[1] if configured else None,
        memory_bytes=found.size_bytes,
        command=None if problem or family is None else f"{base}{_serving(path, configured[2] if configured else None)}",
        problem=problem,
    )


def _svdquant(path: str, found: CheckpointFile, layers: SvdquantLayers) -> Inspected:
    facts = {
        "format": found.format,
        "layers": {"transformer": layers.count},
        "needs": "the model that it was quantised from, CUDA, and a build of cache-dit with its SVDQuant kernels",
        "bytes": found.size_bytes,
        "dtypes": dict(found.dtypes),
    }
    command = f"{SERVE} --model-path MODEL --component {shlex.quote(f'transformer={path}')} --dtype {layers.dtype}"
    return Inspected(path, str(found.kind), facts, command=command)


def _hub_id(path: str) -> Inspected:
    """Return the contents of a hub id: of its files in the local cache, or else of the configuration that names it.

    Raises:
        Unservable: neither knows it, and the hub does not give it.
    """
    configuration, why, entry = configured = _configuration(path)
    downloaded = "no"
    if index := hub.cached(path, INDEX, None):
        try:
            found = read_folder(index.parent, dtype=entry.model.dtype if entry else "bfloat16")
            return _of_folder(path, found, configured, folder.in_folder(index.parent)(INDEX) or {})
        except BrokenFolder as error:  # a start downloads what is missing
            downloaded = f"in part: {error}"
    if entry is None and (refused := hub.refusal(path, None)):
        raise Unservable(f"model.path {path!r} {refused}")
    facts = {
        "pipeline_class": (hub.on_hub(path, None)(INDEX) or {}).get("_class_name") if entry is None else None,
        "downloaded": downloaded,
    }
    weights = None
    if entry is not None:
        about = entry.about
        facts |= {"pipeline_class": about.pipeline_class, "task": about.task, "licence": about.licence}
        if about.parameters:
            weights = int(about.parameters * GB) * DTYPE_BITS[entry.model.dtype] // 8
    return Inspected(
        path,
        "model",
        {name: value for name, value in facts.items() if value is not None},
        configuration=configuration,
        configuration_reason=why,
        dtype=entry.model.dtype if entry else None,
        memory_bytes=weights,
        command=_serving(path, entry),
    )
