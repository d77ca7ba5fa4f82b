"""Header of a safetensors file: names, types and shapes of its tensors, and its metadata. No tensor is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path, PurePath
from stat import S_ISREG
from typing import Any, NamedTuple

LENGTH_BYTES = 8
"""Size of the header's length, which the file begins with, bytes."""
MAX_HEADER_BYTES = 100_000_000
"""Greatest length of a header, bytes. The safetensors library has the same bound."""
BITS = {
    "BOOL": 8,
    **{f"{kind}{bits}": bits for kind in "UI" for bits in (8, 16, 32, 64)},
    **{f"F{bits}": bits for bits in (16, 32, 64)},
    "BF16": 16,
    "C64": 64,
    **dict.fromkeys(("F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}
"""Bits of a value, by type."""
LFS_POINTER = b"version https://git-lfs"
LFS_REASON = "it is a Git LFS pointer in place of the file: run `git lfs pull` where it was cloned, or download it"
PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl"})
"""Suffixes of files that torch.save wrote."""
OTHER_FORMATS = {
    LFS_POINTER: LFS_REASON,
    b"GGUF": "it is a GGUF file; take the model's safetensors file",
    b"PK\x03\x04": "it is a pickle or an archive, not safetensors; convert it with torch.load and "
    "safetensors.torch.save_file on a machine that may run it",
    b"\x80": "it is a pickle, not safetensors; convert it with torch.load and safetensors.torch.save_file on a machine "
    "that may run it",
    b"<": "it is a web page in place of the file: download it again, signed in where its site asks for that",
}
"""Other contents of files, by their first bytes."""


class UnreadableFile(Exception):
    """A file is no intact safetensors file. The message has the reason and the remedy, and no path."""


class TensorEntry(NamedTuple):
    """A tensor of a file."""

    dtype: str
    """Type by its name in safetensors, such as `BF16`."""
    shape: tuple[int, ...]
    size_bytes: int


@dataclass(frozen=True)
class SafetensorsHeader:
    """Contents of a safetensors file, without the values."""

    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]

    @property
    def size_bytes(self) -> int:
        """Size of all tensors, bytes."""
        return sum(entry.size_bytes for entry in self.tensors.values())


def refuse_pickle(name: str) -> None:
    """Refuse a file that its name shows to be a pickle.

    Raises:
        UnreadableFile: it is one; the message has the way to convert it.
    """
    if (suffix := PurePath(name).suffix) in PICKLES:
        raise UnreadableFile(
            f"only .safetensors files are loaded, not {suffix}: it is a pickle, which may run programs; convert "
            "it with torch.load(..., weights_only=True) and safetensors.torch.save_file"
        )


def read_header(file: Path) -> SafetensorsHeader:
    """Return the header of a file, after checking that the file is as long as it says.

    Raises:
        UnreadableFile: the file cannot be read, is of another format, is truncated, or its header is invalid.
    """
    try:
        status = file.stat()
        if not S_ISREG(status.st_mode):  # to open a pipe would wait for its other end
            raise UnreadableFile("it is a folder, a pipe or a device in place of a file")
        size = status.st_size
        with file.open("rb") as opened:
            start = opened.read(len(LFS_POINTER))
            if reason := _other_format(start):
                raise UnreadableFile(reason)
            length = int.from_bytes(start[:LENGTH_BYTES], "little")
            if len(start) < LENGTH_BYTES or not 2 <= length <= MAX_HEADER_BYTES:
                raise UnreadableFile("the file is damaged, or is not safetensors: it begins with no header's length")
            if LENGTH_BYTES + length > size:
                raise UnreadableFile("the file is damaged: it ends within its header; download it again")
            opened.seek(LENGTH_BYTES)
            header = _parsed(opened.read(length))
    except OSError as error:
        raise UnreadableFile(f"the file cannot be read: {error.strerror}") from error
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise UnreadableFile("the file is damaged: its metadata is no JSON object of strings")
    if not all(name.isprintable() for name in header):
        raise UnreadableFile("the file is damaged: a tensor's name has control characters")
    found = {name: _entry(name, entry) for name, entry in header.items()}
    expected = LENGTH_BYTES + length + max((end for _, _, end in found.values()), default=0)
    if size != expected:
        raise UnreadableFile(f"the file is damaged: {size} of {expected} bytes are there; download it again")
    last = 0
    for name, (_, begin, end) in sorted(found.items(), key=lambda item: item[1][1:]):
        if begin != last:
            raise UnreadableFile(f"the file is damaged: the values of {name[:100]} do not follow those before them")
        last = end
    return SafetensorsHeader({name: entry for name, (entry, _, _) in found.items()}, metadata)


def _other_format(start: bytes) -> str | None:
    # A header's length is never so great that its upper bytes are text. A pickle's first byte may also begin a length.
    for magic, reason in OTHER_FORMATS.items():
        if start.startswith(magic) and any(start[4:LENGTH_BYTES]):
            return reason
    return None


def _parsed(header: bytes) -> dict[str, Any]:
    try:
        found = json.loads(header)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UnreadableFile("the file is damaged, or is not safetensors: its header is no JSON object")
    return found


def renaming(suffix: str) -> str:
    """Return the remedy for the name of a safetensors file that ends in another way; empty for another file's."""
    return "; rename it to end in .safetensors" if suffix.lower() in (".safetensors", ".sft") else ""


def _entry(name: str, entry: Any) -> tuple[TensorEntry, int, int]:
    """Return a tensor's entry, and the begin and end of its values in the file's data, bytes."""
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
            raise ValueError
        if dtype not in BITS:
            raise UnreadableFile(f"it holds tensors of a type that is not known: {str(dtype)[:20]}")
        if begin > end or (end - begin) * 8 != prod(shape) * BITS[dtype]:
            raise ValueError
    except (KeyError, TypeError, ValueError) as error:
        raise UnreadableFile(f"the file is damaged: its header has no valid entry for {name[:100]}") from error
    return TensorEntry(str(dtype), shape, end - begin), begin, end
