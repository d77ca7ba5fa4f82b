"""Text and image encoders in one file, loaded by transformers with the configuration of the model's own encoder."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import PreTrainedConfig, PreTrainedModel

from cache_dit_serving.checkpoints.checkpoint_file import CheckpointFile
from cache_dit_serving.checkpoints.schemes import Scheme
from cache_dit_serving.pipeline.scaled_fp8 import dequantized

PREFIX = re.compile(r"text_encoders\.\w+\.(transformer\.)?|transformer\.(?=text_model\.)")
"""Beginning of the names of an encoder that was taken out of a whole pipeline."""


def load_encoder(
    cls: type[PreTrainedModel], file: CheckpointFile, config: PreTrainedConfig, dtype: torch.dtype
) -> PreTrainedModel:
    """Return an encoder. transformers draws tensors that the file lacks at random.

    GGUF is dequantised, unless transformers finds its kernels for the device.

    Args:
        cls: its class, as the model's index names it.
        config: configuration of the model's own encoder.

    Raises:
        OSError, RuntimeError, ValueError: transformers does not load the file with this configuration.
    """
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # of the weights that the file replaces
    given: dict[str, Any] = {"config": config, "dtype": dtype}
    encoder: PreTrainedModel
    if file.is_gguf:
        encoder = cls.from_pretrained(str(file.path.parent), gguf_file=str(file.path.absolute()), **given)
    else:
        encoder = cls.from_pretrained(None, state_dict=_tensors(file, dtype), **given)
    return encoder


def _tensors(file: CheckpointFile, dtype: torch.dtype) -> Mapping[str, torch.Tensor]:
    """Return a file's tensors by their names in transformers, with the scales of scaled FP8 applied."""
    tensors: Mapping[str, torch.Tensor] = load_file(file.path)
    if file.scheme is Scheme.SCALED_FP8:
        tensors = dequantized(tensors, dtype)
    prefixes = {match[0] for name in tensors if (match := PREFIX.match(name))}
    if len(prefixes) > 1:
        raise ValueError(f"the file holds several encoders: {sorted(prefixes)}")
    return {PREFIX.sub("", name, count=1): tensor for name, tensor in tensors.items()}
