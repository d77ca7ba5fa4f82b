"""Contents of a checkpoint file, read from its header alone."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from math import prod
from pathlib import Path

from cache_dit_serving.checkpoints import gguf_header
from cache_dit_serving.checkpoints.families import DENOISER_PREFIXES, UNET_CLASS, Family, family_of, without_prefix
from cache_dit_serving.checkpoints.schemes import Scheme, scheme_of, scheme_refusal
from cache_dit_serving.checkpoints.svdquant import SvdquantLayers, read_svdquant
from cache_dit_serving.safetensors_header import (
    SafetensorsHeader,
    TensorEntry,
    UnreadableFile,
    read_header,
    refuse_pickle,
    renaming,
)

SAFETENSORS = ".safetensors"
SUFFIXES = (SAFETENSORS, gguf_header.SUFFIX)


class Kind(StrEnum):
    """Kind of a checkpoint. The value is its name for people, without an article."""

    PIPELINE = "whole pipeline"
    DENOISER = "transformer alone"
    UNET = "UNet alone"
    VAE = "VAE"
    TEXT_ENCODER = "text encoder"
    IMAGE_ENCODER = "image encoder"
    CONTROLNET = "ControlNet"
    LORA = "LoRA"
    UNKNOWN = "unknown file"


VAE_PREFIXES = ("vae.", "first_stage_model.")
ENCODER_PREFIXES = ("text_encoders.", "cond_stage_model.", "conditioner.embedders.")
"""Prefixes of a whole pipeline's text encoders."""
LORA = re.compile(r"[._]lora([._]|[AB]\b|\d)|\.(lokr|hada)_|^lora_|\.diff(_b)?$|\.dora_scale$")
CONTROLNET = re.compile(r"^(control_model\.|controlnet_|control_layers\.|control_all_x_embedder\.)")
VAE = re.compile(r"^(vae\.|first_stage_model\.)?(encoder|decoder)\.(conv|mid|middle|up|down|project|stages)")
TEXT_ENCODERS = re.compile(
    r"^((text_encoders\.\w+\.)?(transformer\.)?(text_model\.)?(embeddings\.token_embedding|encoder\.block\.0\.|"
    r"encoder\.layers\.0\.|shared\.weight$)|shared\.weight$|(model\.)?(language_model\.)?(model\.)?(embed_tokens\.|"
    r"layers\.0\.self_attn\.q_proj)|token_embd\.weight$|enc\.blk\.0\.|blk\.0\.attn_q|embeddings\.word_embeddings)"
)
IMAGE_ENCODERS = re.compile(r"^(vision_model\.)?embeddings\.patch_embedding\.")
"""Names of CLIP's and SigLIP's networks for pictures."""
NAMED = 3
"""Tensor names that a report of an unknown file gives."""


@dataclass(frozen=True)
class CheckpointFile:
    """A checkpoint file, by its header."""

    path: Path
    kind: Kind
    family: Family | None
    """Model family of its denoiser; None: it has none, or an unknown one."""
    scheme: Scheme | None
    """Quantisation of its weights; None: they are not quantised."""
    dtypes: Mapping[str, int]
    """Bytes of the tensors by type, as safetensors or GGML call it; the type with the most bytes is first."""
    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]
    svdquant: SvdquantLayers | None = None
    """Layers that cache-dit's SVDQuant quantised, which lie over a whole transformer; None: it is no such file."""

    @classmethod
    def read(cls, path: Path) -> CheckpointFile:
        """Return the contents of a checkpoint file.

        Raises:
            UnreadableFile: the file is a pickle, is neither intact safetensors nor intact GGUF, or has no tensors.
        """
        refuse_pickle(path.name)
        if path.suffix not in SUFFIXES:
            raise UnreadableFile(
                f"only {' and '.join(SUFFIXES)} files are loaded, not {path.suffix or 'others'}{renaming(path.suffix)}"
            )
        if path.suffix == gguf_header.SUFFIX:
            return cls.of(path, SafetensorsHeader(gguf_header.read_gguf_header(path), {}))
        return cls.of(path, read_header(path))

    @classmethod
    def of(cls, path: Path, header: SafetensorsHeader) -> CheckpointFile:
        """Return the contents of a checkpoint file by its header, which may be on the hub alone.

        Raises:
            UnreadableFile: the file has no tensors, or contradicts its metadata.
        """
        tensors, gguf = header.tensors, path.suffix == gguf_header.SUFFIX
        if not tensors:
            raise UnreadableFile("it has no tensors; download or save it again")
        sizes = Counter[str]()
        for entry in tensors.values():
            sizes[entry.dtype] += entry.size_bytes
        scheme = scheme_of(tensors, header.metadata, gguf=gguf)
        svdquant = read_svdquant(tensors, header.metadata) if scheme is Scheme.CACHE_DIT else None
        kind = kind_of(tensors) if svdquant is None else Kind.DENOISER
        family = family_of(tensors) if kind in (Kind.PIPELINE, Kind.DENOISER, Kind.UNET) else None
        return cls(
            path=path,
            kind=kind,
            family=family,
            scheme=scheme,
            dtypes=dict(sizes.most_common()),
            tensors=tensors,
            metadata=header.metadata,
            svdquant=svdquant,
        )

    @property
    def name(self) -> str:
        """Name of the file, without its folder."""
        return self.path.name

    @property
    def is_gguf(self) -> bool:
        return self.path.suffix == gguf_header.SUFFIX

    def holds(self, component: str) -> bool:
        """Return whether a file with a whole pipeline has a component's weights."""
        prefixes = {"transformer": DENOISER_PREFIXES, "unet": DENOISER_PREFIXES, "vae": VAE_PREFIXES}
        return any(name.startswith(prefixes.get(component, ENCODER_PREFIXES)) for name in self.tensors)

    @property
    def has_prefix(self) -> bool:
        """True if the denoiser's names begin with a prefix, as in a whole pipeline."""
        return any(name.startswith(DENOISER_PREFIXES) for name in self.tensors)

    @property
    def size_bytes(self) -> int:
        """Size of all tensors, bytes."""
        return sum(self.dtypes.values())

    @property
    def parameters(self) -> int:
        """Number of the denoiser's parameters, of a file with one; of another file, of all tensors."""
        return sum(prod(entry.shape) for entry in without_prefix(self.tensors).values())

    @property
    def format(self) -> str:
        """Format for people, such as `GGUF Q4_K`, `scaled FP8` or `safetensors BF16`."""
        most = next(iter(self.dtypes))
        if self.is_gguf:
            return f"GGUF {most}"
        if self.svdquant is not None:
            return f"{self.scheme} {self.svdquant.quant_type}"
        return str(self.scheme) if self.scheme else f"safetensors {most}"

    @property
    def refusal(self) -> str | None:
        """Reason that diffusers does not load its weights, with the remedy; None: it does, or the kind is unknown."""
        return scheme_refusal(self.scheme, self.tensors)

    def described(self) -> str:
        """Return one phrase: the kind, the family and the format."""
        family = f" of {self.family.denoiser}" if self.family and self.kind is not Kind.PIPELINE else ""
        like = f", as {self.family.hub_id} has it" if self.family else ""
        named = f" ({', '.join(list(self.tensors)[:NAMED])} ...)" if self.kind is Kind.UNKNOWN else ""
        return f"{self.kind}{family}{like}, {self.format}{named}"


def kind_of(tensors: Collection[str] | Mapping[str, TensorEntry]) -> Kind:
    """Return the kind of a checkpoint with tensors of these names."""
    if any(LORA.search(name) for name in tensors):
        return Kind.LORA
    if any(CONTROLNET.search(name) for name in tensors):
        return Kind.CONTROLNET
    denoiser = any(name.startswith(DENOISER_PREFIXES) for name in tensors)
    if denoiser and any(name.startswith((*VAE_PREFIXES, *ENCODER_PREFIXES)) for name in tensors):
        return Kind.PIPELINE
    entries = tensors if isinstance(tensors, Mapping) else dict.fromkeys(tensors, TensorEntry("", (), 0))
    if family := family_of(entries):
        return Kind.UNET if family.denoiser == UNET_CLASS else Kind.DENOISER
    if any(VAE.search(name) for name in tensors):
        return Kind.VAE
    of_text = any(name.startswith("text_model.") for name in tensors)
    if any(IMAGE_ENCODERS.search(name) for name in tensors) and not of_text:
        return Kind.IMAGE_ENCODER
    if any(TEXT_ENCODERS.search(name) for name in tensors):
        return Kind.TEXT_ENCODER
    if denoiser or any("blocks." in name or name.startswith("layers.") for name in tensors):
        return Kind.DENOISER
    return Kind.UNKNOWN
