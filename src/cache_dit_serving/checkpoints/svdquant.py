"""Checkpoints that cache-dit's SVDQuant serialised, by their headers: the quantised layers of a transformer alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache_dit_serving.safetensors_header import TensorEntry, UnreadableFile

METADATA = "cache_dit_svdq_ptq"
"""Metadata key of a serialised file, and the format that its value names."""
VERSION = 2
"""Version of the format that cache-dit 1.5.3 reads."""
FOLDER_CONFIG = "quant_config.json"
"""File that cache-dit writes beside a checkpoint."""
FOLDER_FORMAT = "cache_dit_svdq_quant_config"
SCALES = ".smooth_factor"
"""End of the name of a tensor whose type is the one that the layer computes in."""
DTYPES = {"BF16": "bfloat16", "F16": "float16"}
AGAIN = "quantise the full weights again with cache-dit 1.5.3"


@dataclass(frozen=True)
class SvdquantLayers:
    """Layers of a checkpoint that cache-dit serialised."""

    quant_type: str
    """Type by cache-dit's name, such as `svdq_int4_r32`."""
    count: int
    """Number of layers."""
    dtype: str
    """Type of the activations that the layers take, by torch's name."""

    @property
    def precision(self) -> str:
        """`int4` or `nvfp4`."""
        return self.quant_type.split("_")[1]


def read_svdquant(tensors: Mapping[str, TensorEntry], metadata: Mapping[str, str]) -> SvdquantLayers:
    """Return the layers of a checkpoint with these tensors and metadata.

    cache-dit 1.5.3 leaves out tensors of layers that the metadata does not list, without a word.

    Raises:
        UnreadableFile: it is of another version, or its tensors are not those of its layers.
    """
    try:
        about = json.loads(metadata[METADATA])
        version, quant_type = about["version"], about["quant_type"]
        layers = frozenset(map(str, about["quantized_layer_names"]))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UnreadableFile(f"its metadata {METADATA} is damaged; {AGAIN}") from error
    if version != VERSION:
        raise UnreadableFile(
            f"it is version {str(version)[:20]} of cache-dit's SVDQuant format, not {VERSION}; {AGAIN}"
        )
    if not isinstance(quant_type, str) or not quant_type.startswith(("svdq_int4_r", "svdq_nvfp4_r")):
        raise UnreadableFile(f"its type {str(quant_type)[:50]} is unknown; {AGAIN}")
    there = frozenset(name.rpartition(".")[0] for name in tensors)
    if layers != there:
        odd = min(there ^ layers)
        what = "has tensors of" if odd in there else "lacks the tensors of"
        raise UnreadableFile(f"it {what} the layer {odd[:150]}, against its metadata; {AGAIN}")
    dtypes = {entry.dtype for name, entry in tensors.items() if name.endswith(SCALES)}
    if len(dtypes) != 1 or not dtypes <= DTYPES.keys():
        raise UnreadableFile(f"its layers are of the types {', '.join(sorted(dtypes)) or 'unknown'}; {AGAIN}")
    return SvdquantLayers(quant_type, len(layers), DTYPES[dtypes.pop()])


def svdquant_file_in(folder: Path) -> Path | None:
    """Return the checkpoint in a folder that cache-dit's SVDQuant wrote; None: it wrote no such folder.

    Raises:
        UnreadableFile: the folder's configuration names a file outside of it.
    """
    if not (folder / FOLDER_CONFIG).is_file():
        return None
    try:
        config: Any = json.loads((folder / FOLDER_CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(config, dict) or config.get("format") != FOLDER_FORMAT:
        return None
    name = config.get("checkpoint_path")
    if not isinstance(name, str) or name != Path(name).name or not (folder / name).is_file():
        raise UnreadableFile(f"{FOLDER_CONFIG} names no checkpoint that is beside it; {AGAIN}")
    return folder / name
