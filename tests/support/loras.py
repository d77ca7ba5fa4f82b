"""LoRA files for the tests: of random values, on the attention of a pipeline's transformer."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file

from cache_dit_serving.config.settings import LoraSettings, Settings

ATTENTION = re.compile(r"attn|attention")
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


def write_lora(pipe: Any, file: Path, *, seed: int = 1, rank: int = 2, strength: float = 0.3) -> None:
    """The same for any class, without touching the pipeline: on the linear layers of its denoiser's attention."""
    generator = torch.Generator().manual_seed(seed)
    component = next(name for name in pipe._lora_loadable_modules if name in ("transformer", "unet"))
    tensors = {}
    for name, layer in getattr(pipe, component).named_modules():
        if isinstance(layer, torch.nn.Linear) and ATTENTION.search(name):
            for side, shape in (("A", (rank, layer.in_features)), ("B", (layer.out_features, rank))):
                key = f"{component}.{name}.lora_{side}.weight"
                tensors[key] = torch.randn(shape, generator=generator) * strength
    assert tensors, f"{type(pipe).__name__} has no layer for a LoRA"
    save_file(tensors, file)
