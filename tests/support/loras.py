"""LoRA files for the tests: of random values, on the attention of a pipeline's transformer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from cache_dit_serving.config.settings import LoraSettings, Settings

TARGETS = ["to_q", "to_k", "to_v"]


def with_loras(settings: Settings, *loras: LoraSettings) -> Settings:
    """The same settings with these LoRAs."""
    return settings.model_copy(update={"model": settings.model.model_copy(update={"loras": loras})})


def save_lora(pipe: Any, file: Path, *, seed: int, rank: int = 2, strength: float = 0.3) -> Path:
    """A LoRA for a pipeline, saved as diffusers saves one; the pipeline is left as it was."""
    torch.manual_seed(seed)
    pipe.transformer.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS, init_lora_weights=False))
    tensors = get_peft_model_state_dict(pipe.transformer)
    pipe.transformer.delete_adapters("default")
    tensors = {name: torch.randn_like(tensor) * strength for name, tensor in tensors.items()}
    type(pipe).save_lora_weights(file.parent, transformer_lora_layers=tensors, weight_name=file.name)
    return file
