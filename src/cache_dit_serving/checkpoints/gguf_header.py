"""Header of a GGUF file: names, types and shapes of its tensors. The gguf package reads it; no tensor is read."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

from cache_dit_serving.safetensors_header import LFS_POINTER, LFS_REASON, TensorEntry, UnreadableFile

SUFFIX = ".gguf"
MAGIC = b"GGUF"
PACKAGE = "gguf"


def read_gguf_header(file: Path) -> Mapping[str, TensorEntry]:
    """Return the tensors of a GGUF file. Shapes are in torch's order, which is the reverse of GGUF's.

    Raises:
        UnreadableFile: the file cannot be read, is of another format, is truncated, or the gguf package is missing.
    """
    try:
        with file.open("rb") as opened:
            start = opened.read(len(LFS_POINTER))
    except OSError as error:
        raise UnreadableFile(f"the file cannot be read: {error.strerror}") from error
    if start.startswith(LFS_POINTER):
        raise UnreadableFile(LFS_REASON)
    if not start.startswith(MAGIC):
        raise UnreadableFile("the file is damaged, or is not GGUF: it does not begin with GGUF; download it again")
    if importlib.util.find_spec(PACKAGE) is None:
        raise UnreadableFile("GGUF needs the package gguf, which is not installed: pip install -r requirements.txt")
    from gguf import GGUFReader

    try:
        reader = GGUFReader(file)
    except Exception as error:
        raise UnreadableFile("the file is damaged: its header does not fit its length; download it again") from error
    return {
        tensor.name: TensorEntry(
            tensor.tensor_type.name, tuple(int(side) for side in reversed(tensor.shape)), int(tensor.n_bytes)
        )
        for tensor in reader.tensors
    }
