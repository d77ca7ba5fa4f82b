"""LoRA files as the trainers that people use write them: random values on the attention of a tiny model."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

FLUX = ("diffusers", "metadata", "alphas", "dora", "kohya", "kohya-8steps", "xlabs")
PEFT = ("peft", "peft-rslora", "peft-dora")
"""Folders that PEFT saved. Their configurations have an alpha, ranks by layer, and a dropout."""
WAN = {"lightx2v": "lightx2v", "musubi": "musubi", "ai-toolkit": "ai-toolkit", "lightx2v-alpha": "lightx2v"}
"""Files for Wan, and their formats."""
RANK = 2
ALPHA = 8.0
Tensors = dict[str, torch.Tensor]


class Values:
    """Random values, the same for each file of a name."""

    def __init__(self, name: str) -> None:
        self._generator = torch.Generator().manual_seed(len(name) + sum(name.encode()))

    def __call__(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self._generator) * 0.3


def save_format(pipe: Any, name: str, folder: Path) -> None:
    """Save a LoRA of a format into a folder of its own."""
    folder.mkdir()
    if name in PEFT:
        return _save_peft(pipe, name, folder)
    if name in WAN:
        tensors = _wan(pipe, name)
    else:
        tensors = {"kohya": _kohya, "kohya-8steps": _kohya, "xlabs": _xlabs}.get(name, _diffusers)(pipe, name)
    metadata = {"format": "pt"}
    if name == "metadata":
        fields = {"r": RANK, "lora_alpha": ALPHA, "target_modules": ["to_q"], "lora_dropout": 0.0}
        metadata["lora_adapter_metadata"] = json.dumps({f"transformer.{key}": each for key, each in fields.items()})
    if name == "kohya-8steps":
        metadata["modelspec.shift"] = "3.0"
    save_file(tensors, folder / f"{name}.safetensors", metadata)
    return None


def _attention(pipe: Any) -> list[tuple[str, Any]]:
    layers = pipe.transformer.named_modules()
    return [(name, layer) for name, layer in layers if re.search(r"(^|\.)transformer_blocks.*attn\.to_[qkv]$", name)]


def _pair(layer: Any, values: Values, rank: int = RANK) -> tuple[torch.Tensor, torch.Tensor]:
    return values(rank, layer.in_features), values(layer.out_features, rank)


def _diffusers(pipe: Any, name: str) -> Tensors:
    values, tensors = Values(name), Tensors()
    for path, layer in _attention(pipe):
        key = f"transformer.{path}"
        tensors[f"{key}.lora_A.weight"], tensors[f"{key}.lora_B.weight"] = _pair(layer, values)
        if name == "alphas":
            tensors[f"{key}.alpha"] = torch.tensor(ALPHA)
        if name == "dora":
            tensors[f"{key}.lora_magnitude_vector"] = values(layer.out_features).abs() + 0.5
    return tensors


def _kohya(pipe: Any, name: str) -> Tensors:
    """Blocks in Flux's original naming, where one layer has q, k and v; and a text encoder."""
    values, tensors = Values(name), Tensors()
    width = pipe.transformer.transformer_blocks[0].attn.to_q.in_features

    def put(layer: str, wide: int, out: int) -> None:
        tensors[f"{layer}.lora_down.weight"], tensors[f"{layer}.lora_up.weight"] = values(RANK, wide), values(out, RANK)
        tensors[f"{layer}.alpha"] = torch.tensor(ALPHA)

    for block in range(len(pipe.transformer.transformer_blocks)):
        put(f"lora_unet_double_blocks_{block}_img_attn_qkv", width, 3 * width)
        put(f"lora_unet_double_blocks_{block}_img_attn_proj", width, width)
    hidden = pipe.text_encoder.config.hidden_size
    encoder = "te1" if name == "kohya" else "te2"
    for layer in ("q_proj", "out_proj"):
        put(f"lora_{encoder}_text_model_encoder_layers_0_self_attn_{layer}", hidden, hidden)
    return tensors


def _xlabs(pipe: Any, name: str) -> Tensors:
    values, tensors = Values(name), Tensors()
    width = pipe.transformer.transformer_blocks[0].attn.to_q.in_features
    for block in range(len(pipe.transformer.transformer_blocks)):
        start = f"double_blocks.{block}.processor"
        for lora, out in (("qkv_lora1", 3 * width), ("proj_lora1", width), ("proj_lora2", width)):
            tensors[f"{start}.{lora}.down.weight"] = values(RANK, width)
            tensors[f"{start}.{lora}.up.weight"] = values(out, RANK)
    return tensors


def _save_peft(pipe: Any, name: str, folder: Path) -> None:
    values, tensors = Values(name), Tensors()
    for path, layer in _attention(pipe):
        key = f"base_model.model.{path}"
        rank = 2 * RANK if path.endswith("to_k") else RANK
        tensors[f"{key}.lora_A.weight"], tensors[f"{key}.lora_B.weight"] = _pair(layer, values, rank)
        if name == "peft-dora":
            tensors[f"{key}.lora_magnitude_vector"] = values(layer.out_features).abs() + 0.5
    fields = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": ALPHA,
        "rank_pattern": {"to_k": 2 * RANK},
        "alpha_pattern": {"to_v": 3.0},
        "use_rslora": name == "peft-rslora",
        "use_dora": name == "peft-dora",
        "lora_dropout": 0.5,
        "bias": "none",
        "target_modules": sorted({path for path, _ in _attention(pipe)}),
        "init_lora_weights": True,
        "task_type": None,
    }
    (folder / "adapter_config.json").write_text(json.dumps(fields), encoding="utf-8")
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})


def save_lokr(pipe: Any, file: Path, prefix: str) -> None:
    """Save a LoKr of one factor of 2 x 2, as ai-toolkit (prefix `diffusion_model.`, with alphas) and PEFT write it."""
    values, tensors = Values(file.stem), Tensors()
    for path, layer in pipe.transformer.named_modules():
        if re.search(r"\.to_[qkv]$", path):
            key = f"{prefix}{path}"
            tensors[f"{key}.lokr_w1"] = values(2, 2)
            tensors[f"{key}.lokr_w2"] = values(layer.out_features // 2, layer.in_features // 2)
            if prefix == "diffusion_model.":
                tensors[f"{key}.alpha"] = torch.tensor(ALPHA)
    save_file(tensors, file)


def _wan(pipe: Any, name: str) -> Tensors:
    values, tensors = Values(name), Tensors()
    musubi, ai_toolkit = name == "musubi", name == "ai-toolkit"
    down, up = ("lora_A", "lora_B") if ai_toolkit else ("lora_down", "lora_up")
    block = pipe.transformer.blocks[0]
    for number in range(len(pipe.transformer.blocks)):
        layers = [
            (f"{theirs}.{letter}", getattr(attention, ours))
            for theirs, attention in (("self_attn", block.attn1), ("cross_attn", block.attn2))
            for letter, ours in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"))
        ]
        layers += [("self_attn.o", block.attn1.to_out[0]), ("cross_attn.o", block.attn2.to_out[0])]
        layers += [("ffn.0", block.ffn.net[0].proj), ("ffn.2", block.ffn.net[2])]
        for theirs, layer in layers:
            path = f"blocks.{number}.{theirs}"
            key = f"lora_unet_{path.replace('.', '_')}" if musubi else f"diffusion_model.{path}"
            tensors[f"{key}.{down}.weight"], tensors[f"{key}.{up}.weight"] = _pair(layer, values)
            if musubi or name == "lightx2v-alpha":
                tensors[f"{key}.alpha"] = torch.tensor(ALPHA)
            if name == "lightx2v":
                tensors[f"{key}.diff_b"] = values(layer.out_features)
        if name == "lightx2v":
            tensors[f"diffusion_model.blocks.{number}.norm3.diff"] = values(block.attn1.to_q.in_features)
    return tensors
