"""Other weights of the same shapes in the place of a loaded model's: all of them, or none."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors.torch
import torch

from cache_dit_serving.errors import InvalidRequest
from cache_dit_serving.host_memory import free_host_bytes
from cache_dit_serving.model_folder.broken import BrokenFolder
from cache_dit_serving.model_folder.replacement import Replacement, folder_below, replacements_in
from cache_dit_serving.model_folder.weights import counted
from cache_dit_serving.pipeline.equal_weights import file_name
from cache_dit_serving.pipeline.host_copy import HostCopy, NoHostMemory
from cache_dit_serving.pipeline.memory import is_out_of_memory
from cache_dit_serving.pipeline.networks import networks_of
from cache_dit_serving.pipeline.protocol import Reloaded, WeightsChoice
from cache_dit_serving.pipeline.quantize import is_quantized

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from cache_dit_serving.safetensors_header import TensorEntry

logger = logging.getLogger(__name__)

FOLDER, DIGEST = "folder", "sha256"
"""Fields of the request."""
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "BOOL": torch.bool,
}
"""torch's types by their names in safetensors; files with others are refused."""


@dataclass(frozen=True)
class _Change:
    """A tensor of the model with its new values, in host memory and in the model's type."""

    target: torch.Tensor
    values: torch.Tensor


def reload(
    pipe: DiffusionPipeline,
    root: Path,
    choice: WeightsChoice,
    sign: Callable[[], None],
    *,
    fused: Sequence[str],
    part: Callable[[Mapping[str, torch.nn.Module]], None],
) -> Reloaded:
    """Put the weights of a folder in the place of a pipeline's.

    All is read and compared before the first weight changes. If the change fails, the weights are those of before.

    Args:
        root: folder of the operator, below which the weights lie.
        sign: called at each file and tensor.
        fused: LoRAs that are part of the weights.
        part: gives components weights that no other model uses.

    Raises:
        InvalidRequest: the folder is not there, does not fit the model or its digest is another one, or the device has
            no room for weights that other models do not use.
    """
    networks = networks_of(pipe)
    libraries = {name: type(each).__module__.partition(".")[0] for name, each in networks.items()}
    try:
        found = replacements_in(folder_below(root, choice.folder), root, libraries)
    except BrokenFolder as error:
        raise InvalidRequest(f"folder: {error}", param=FOLDER) from error
    if fused:
        words = f"LoRAs are fused into the weights ({', '.join(fused)}), and would be lost"
        raise InvalidRequest(words, param=FOLDER)
    targets = {each.component: _targets(networks[each.component], each) for each in found}
    _check_memory(found, targets)
    digest, changes = _read(found, targets, sign)
    if choice.sha256 not in (None, digest):
        raise InvalidRequest(f"the digest of the folder is {digest}", param=DIGEST)
    _part({name: networks[name] for name in targets}, part)
    _change(changes, sign)
    logger.info("the weights of %s are %s now", ", ".join(targets), digest)
    return Reloaded(digest, tuple(targets))


def _targets(module: torch.nn.Module, new: Replacement) -> dict[str, torch.Tensor]:
    """Return a component's tensors by their names in files, after comparing names, shapes and types.

    Raises:
        InvalidRequest: the files are not of this component.
    """
    if is_quantized(module):
        raise InvalidRequest(f"{new.component}: its weights are quantised, and cannot be exchanged", param=FOLDER)
    named = ((file_name(name), tensor) for name, tensor in module.state_dict(keep_vars=True).items())
    state: dict[str, torch.Tensor] = {name: tensor for name, tensor in named if name is not None}
    if any(tensor.device.type == "meta" for tensor in state.values()):
        raise InvalidRequest(f"{new.component}: model.offload keeps its weights elsewhere", param=FOLDER)
    given = {id(tensor) for name, tensor in state.items() if name in new.tensors}
    # A tensor with two names, such as tied embeddings, stands in the file under one of them.
    missing = [name for name, tensor in state.items() if name not in new.tensors and id(tensor) not in given]
    unknown = sorted(new.tensors.keys() - state.keys())
    for names, words in ((missing, "lack"), (unknown, "have other names than the model:")):
        if names:
            raise InvalidRequest(f"the files of {new.component} {words} {counted(names, 'tensor')}", param=FOLDER)
    for name, entry in new.tensors.items():
        if (why := _misfit(entry, state[name])) is not None:
            raise InvalidRequest(f"{new.component}: {name[:100]} {why}", param=FOLDER)
    return {name: state[name] for name in new.tensors}


def _misfit(entry: TensorEntry, tensor: torch.Tensor) -> str | None:
    """Return why a tensor of a file cannot take the place of one of the model; None if it can."""
    if entry.shape != tuple(tensor.shape):
        return f"has the shape {list(entry.shape)}, and the model's has {list(tensor.shape)}"
    dtype = DTYPES.get(entry.dtype)
    # Floating types are converted, as they are when a model is loaded.
    if dtype is None or (dtype != tensor.dtype and not (dtype.is_floating_point and tensor.is_floating_point())):
        return f"is of the type {entry.dtype}, and the model's of {str(tensor.dtype).removeprefix('torch.')}"
    return None


def _check_memory(found: Sequence[Replacement], targets: Mapping[str, Mapping[str, torch.Tensor]]) -> None:
    """Refuse weights for which the host has too little memory: a file, all new values, and a copy of the old ones."""
    largest = max(file.stat().st_size for each in found for file in each.files)
    needed = largest + 2 * sum(tensor.nbytes for each in targets.values() for tensor in each.values())
    if needed > (free := free_host_bytes()):
        words = f"the change needs {needed / 2**30:.1f} GiB of host memory, and {free / 2**30:.1f} GiB are free"
        raise InvalidRequest(words, param=FOLDER)


def _read(
    found: Sequence[Replacement], targets: Mapping[str, Mapping[str, torch.Tensor]], sign: Callable[[], None]
) -> tuple[str, list[_Change]]:
    """Read all files; return the digest of their contents, and the changes.

    The digest is the SHA-256 of what `sha256sum` prints of the files, in the order of their paths within the folder.

    Raises:
        InvalidRequest: a file has changed since its header was read.
    """
    lines: dict[str, str] = {}
    changes: list[_Change] = []
    for each in found:
        for file in each.files:
            sign()
            path = f"{each.component}/{file.name}"
            try:
                content = file.read_bytes()
                tensors = safetensors.torch.load(content)
            except (OSError, ValueError, safetensors.SafetensorError) as error:
                raise InvalidRequest(f"{path} has changed while it was read", param=FOLDER) from error
            lines[path] = f"{hashlib.sha256(content).hexdigest()}  {path}\n"
            del content
            for name, values in tensors.items():
                target = targets[each.component].get(name)
                if target is None or target.shape != values.shape:
                    raise InvalidRequest(f"{path} has changed while it was read", param=FOLDER)
                changes.append(_Change(target, values.to(target.dtype)))
    if len(changes) != sum(map(len, targets.values())):
        raise InvalidRequest("the files have changed while they were read", param=FOLDER)
    text = "".join(line for _, line in sorted(lines.items()))
    return hashlib.sha256(text.encode()).hexdigest(), changes


def _part(components: Mapping[str, torch.nn.Module], part: Callable[[Mapping[str, torch.nn.Module]], None]) -> None:
    try:
        part(components)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        words = f"other models use the same weights of {', '.join(components)}, and the device has no room for others"
        raise InvalidRequest(words, param=FOLDER) from None


def _change(changes: Sequence[_Change], sign: Callable[[], None]) -> None:
    """Put new values into the model's tensors.

    Raises:
        Exception: a copy failed. All tensors have their old values.
    """
    storages = {each.target.untyped_storage()._cdata: each.target.untyped_storage() for each in changes}
    try:
        before = HostCopy.of(list(storages.values()), lambda: False, free_host_bytes())
    except NoHostMemory as error:
        raise InvalidRequest("the host has too little free memory for the change", param=FOLDER) from error
    assert before is not None
    try:
        with torch.no_grad():
            for each in changes:
                sign()
                each.target.copy_(each.values)
    except BaseException:
        logger.exception("the weights could not be changed; those of before are put back")
        before.restore(lambda: None)
        raise
