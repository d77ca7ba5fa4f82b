"""Tensors of a LoRA's file, and the configuration of its adapter, read once and checked."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from safetensors import SafetensorError, safe_open

from cache_dit_serving.config.settings import LoraSettings
from cache_dit_serving.errors import LoadError
from cache_dit_serving.loras.adapter_config import UnsupportedAdapter, parsed
from cache_dit_serving.loras.formats import LoraFormat
from cache_dit_serving.loras.locate import ADAPTER_CONFIG, adapter_config, locate
from cache_dit_serving.loras.lora_file import LoraFile, read_lora_file
from cache_dit_serving.safetensors_header import UnreadableFile

logger = logging.getLogger(__name__)

PEFT_PREFIX = "base_model.model."
"""Beginning of each name in a LoRA that PEFT saved."""
MAX_CONFIG_BYTES = 10_000_000


@dataclass(frozen=True)
class LoraWeights:
    """A LoRA that was read, before diffusers converts it."""

    label: str
    """Beginning of its errors: its name and its file's."""
    file: LoraFile
    tensors: dict[str, torch.Tensor]
    adapter: dict[str, Any] | None
    """Fields of PEFT's configuration, by `component.field`; None: alpha stands in tensors, or equals the rank."""


def read(settings: LoraSettings, denoiser: str) -> LoraWeights:
    """Return a LoRA's tensors and configuration.

    Args:
        denoiser: component that a LoRA saved by PEFT is for, which its names do not say.

    Raises:
        LoadError: the file does not exist, is damaged, of another kind or of a format that is not loaded, or holds NaN.
    """
    path = locate(settings)
    label = f"LoRA {settings.name} ({path.name})"
    try:
        contents = read_lora_file(path)
        adapter: dict[str, Any] | None = None
        tensors = _tensors(path)
        if contents.format is LoraFormat.PEFT:
            tensors = {_named(name, denoiser): tensor for name, tensor in tensors.items()}
            adapter = _saved_by_peft(path, settings, denoiser)
        elif stored := contents.header.metadata.get(LORA_ADAPTER_METADATA_KEY):
            adapter = parsed(stored, f"{LORA_ADAPTER_METADATA_KEY} in its metadata")
    except (UnreadableFile, UnsupportedAdapter) as error:
        if error.__cause__ is not None:
            logger.warning("the LoRA file %s is refused: %s (%s)", path, error, error.__cause__)
        raise LoadError(f"{label}: {error}") from error
    return LoraWeights(label, contents, tensors, adapter)


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    try:
        with safe_open(path, framework="pt") as opened:
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise UnreadableFile("the file is damaged, or is not safetensors; download it again") from error
    for key, tensor in tensors.items():
        if not torch.isfinite(tensor.float()).all():
            raise UnreadableFile(f"{key} holds values that are not numbers (NaN or infinity); train or save it again")
    return tensors


def _named(name: str, denoiser: str) -> str:
    bare = name.removeprefix(PEFT_PREFIX)
    return bare if bare.startswith(f"{denoiser}.") else f"{denoiser}.{bare}"


def _saved_by_peft(path: Path, settings: LoraSettings, denoiser: str) -> dict[str, Any]:
    config = adapter_config(path, settings)
    if config is None:
        raise UnsupportedAdapter(
            f"its format is PEFT's, and {ADAPTER_CONFIG}, which has its alpha, is not beside it; put it there"
        )
    try:
        if config.stat().st_size > MAX_CONFIG_BYTES:
            raise UnsupportedAdapter(f"{ADAPTER_CONFIG} beside it is larger than {MAX_CONFIG_BYTES} bytes")
        fields = parsed(config.read_bytes(), f"{ADAPTER_CONFIG} beside it")
    except OSError as error:
        raise UnsupportedAdapter(f"{ADAPTER_CONFIG} beside it cannot be read: {error.strerror}") from error
    return {f"{denoiser}.{field}": value for field, value in fields.items()}
