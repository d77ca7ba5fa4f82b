"""A LoRA that draws well without a cache and badly with one: the family of requests that is bad on purpose."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import save_file

from cache_dit_serving.pipeline.load import EMBEDDED_FOLDER

PROMPTS = ("a red apple on a blue background", "a robot on a yellow background", "a cat on a green background")
WAVES = 2
"""Waves of the drift over the schedule. The cache's Taylor series, of order 2, does not follow them."""
GAIN = 0.4
"""Size of the drift. At twice this size the picture without the cache is bad too."""
RIDGE = 1e-3
"""Share of the embedding's power that the least squares hold against great weights."""
MODULATED = ".norm.linear"


def save_drifting_lora(file: Path) -> None:
    """Write a LoRA of rank 1 for the embedded model, which shifts the inputs of the single blocks in waves of time.

    Its A reads a cosine of the time from the embedding of the timestep, by least squares over some prompts; its B is
    random. It is on the modulation of the ten single blocks, those that the cache skips, and leaves the first block
    alone, whose output the cache looks at.
    """
    pipe: Any = diffusers.DiffusionPipeline.from_pretrained(EMBEDDED_FOLDER, dtype=torch.float32)
    read = _wave_of_time(pipe)
    dice = torch.Generator().manual_seed(1)
    tensors = {}
    for name, layer in pipe.transformer.named_modules():
        if name.startswith("single_transformer_blocks.") and name.endswith(MODULATED):
            written = torch.zeros(layer.out_features)
            shift = layer.out_features // 3  # of shift, scale and gate
            written[:shift] = GAIN * torch.randn(shift, generator=dice)
            tensors[f"transformer.{name}.lora_A.weight"] = read[None].clone()
            tensors[f"transformer.{name}.lora_B.weight"] = written[:, None].clone()
    save_file(tensors, file)


def _wave_of_time(pipe: Any) -> torch.Tensor:
    """Return weights whose product with a modulation's input is a cosine of the time."""
    times = torch.linspace(0.05, 1, 28)
    inputs = []
    with torch.no_grad():
        for prompt in PROMPTS:
            _, pooled, _ = pipe.encode_prompt(prompt, prompt, max_sequence_length=32)
            embedded = pipe.transformer.time_text_embed(1000 * times, pooled.expand(len(times), -1))
            inputs.append(torch.nn.functional.silu(embedded))
    known, wave = torch.cat(inputs), torch.cos(2 * math.pi * WAVES * times).repeat(len(PROMPTS))
    held = RIDGE * len(known) * known.pow(2).mean() * torch.eye(known.shape[1])
    return torch.linalg.solve(known.T @ known + held, known.T @ wave)
