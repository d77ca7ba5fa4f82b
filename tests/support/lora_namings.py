"""LoRA files whose trainers name the layers of a tiny model in another way than diffusers, with random values."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.support.lora_formats import ALPHA, RANK, Tensors, Values

REFINER_RANK = 32
"""Rank that three do not divide, as any that people train."""
Layers = Iterator[tuple[str, list[str]]]
"""A layer in the file's naming, and the layers of diffusers' transformer that it is made of."""
QWEN = {
    "musubi": "kohya",
    "lightning-8steps": "diffusers",
    "diffsynth": "diffusers",
    "ai-toolkit": "ai-toolkit",
}
"""Files for Qwen-Image, and their formats."""
HUNYUAN = {"diffusion-pipe": "ai-toolkit", "finetrainers": "diffusers"}
"""Files for HunyuanVideo in its original naming, and their formats."""


def save_fal_kontext(pipe: Any, file: Path) -> None:
    """Flux's original naming, below PEFT's prefix, with every layer, as fal's trainer writes it."""
    _save(pipe, file, ((f"base_model.model.{name}", layers) for name, layers in _flux(pipe.transformer)))


def save_fast_wan(pipe: Any, file: Path) -> None:
    """FastWan as ComfyUI has it: extracted from all weights, so with embeddings, the head, biases and norms."""
    values, tensors = Values(file.stem), Tensors()
    for name, layers in _wan(pipe.transformer):
        (layer,) = (pipe.transformer.get_submodule(path) for path in layers)
        key = f"diffusion_model.{name}"
        tensors[f"{key}.lora_down.weight"] = values(RANK, layer.in_features)
        tensors[f"{key}.lora_up.weight"] = values(layer.out_features, RANK)
        tensors[f"{key}.diff_b"] = values(layer.out_features)
    tensors["diffusion_model.patch_embedding.diff_b"] = values(8)
    tensors["diffusion_model.blocks.0.self_attn.norm_q.diff"] = values(8)
    save_file(tensors, file)


def save_qwen(pipe: Any, file: Path) -> None:
    name, layers = file.stem, list(_qwen(pipe.transformer))
    if name == "musubi":
        layers += [("img_in", ["img_in"]), ("norm_out.linear", ["norm_out.linear"])]
        _save(pipe, file, ((f"lora_unet_{path.replace('.', '_')}", each) for path, each in layers), kohya=True)
    elif name == "lightning-8steps":
        _save(pipe, file, iter(layers), kohya=True)
    elif name == "diffsynth":
        _save(pipe, file, iter(layers), adapter=".default")
    else:
        _save(pipe, file, ((f"diffusion_model.{path}", each) for path, each in layers))


def save_hunyuan(pipe: Any, file: Path) -> None:
    prefix = "diffusion_model" if file.stem == "diffusion-pipe" else "transformer"
    _save(pipe, file, ((f"{prefix}.{name}", each) for name, each in _hunyuan(pipe.transformer)))


def save_hunyuan_kohya(pipe: Any, file: Path) -> None:
    """musubi-tuner's naming, which diffusers does not convert for HunyuanVideo."""
    named = ((f"lora_unet_{name.replace('.', '_')}", each) for name, each in _hunyuan(pipe.transformer))
    _save(pipe, file, named, kohya=True)


def save_hunyuan_refiner(pipe: Any, file: Path) -> None:
    """The token refiner's fused projections, of which diffusers divides both matrices."""
    block = "context_embedder.token_refiner.refiner_blocks.0.attn"
    fused = [f"{block}.to_q", f"{block}.to_k", f"{block}.to_v"]
    name = "diffusion_model.txt_in.individual_token_refiner.blocks.0.self_attn_qkv"
    others = ((f"diffusion_model.{name}", each) for name, each in _hunyuan(pipe.transformer))
    _save(pipe, file, iter([*others, (name, fused)]), rank=REFINER_RANK)


def _save(pipe: Any, file: Path, layers: Layers, *, kohya: bool = False, adapter: str = "", rank: int = RANK) -> None:
    values, tensors = Values(file.stem), Tensors()
    down, up = ("lora_down", "lora_up") if kohya else (f"lora_A{adapter}", f"lora_B{adapter}")
    for name, paths in layers:
        found = [pipe.transformer.get_submodule(path) for path in paths]
        tensors[f"{name}.{down}.weight"] = values(rank, found[0].in_features)
        tensors[f"{name}.{up}.weight"] = values(sum(layer.out_features for layer in found), rank)
        if kohya:
            tensors[f"{name}.alpha"] = torch.tensor(ALPHA)
    save_file(tensors, file)


def _flux(transformer: Any) -> Layers:
    for number in range(len(transformer.transformer_blocks)):
        ours, theirs = f"transformer_blocks.{number}", f"double_blocks.{number}"
        yield f"{theirs}.img_mod.lin", [f"{ours}.norm1.linear"]
        yield f"{theirs}.txt_mod.lin", [f"{ours}.norm1_context.linear"]
        yield f"{theirs}.img_attn.qkv", [f"{ours}.attn.to_{letter}" for letter in "qkv"]
        yield f"{theirs}.txt_attn.qkv", [f"{ours}.attn.add_{letter}_proj" for letter in "qkv"]
        yield f"{theirs}.img_attn.proj", [f"{ours}.attn.to_out.0"]
        yield f"{theirs}.txt_attn.proj", [f"{ours}.attn.to_add_out"]
        for stream, part in (("img", "ff"), ("txt", "ff_context")):
            yield f"{theirs}.{stream}_mlp.0", [f"{ours}.{part}.net.0.proj"]
            yield f"{theirs}.{stream}_mlp.2", [f"{ours}.{part}.net.2"]
    for number in range(len(transformer.single_transformer_blocks)):
        ours, theirs = f"single_transformer_blocks.{number}", f"single_blocks.{number}"
        yield f"{theirs}.modulation.lin", [f"{ours}.norm.linear"]
        yield f"{theirs}.linear1", [*(f"{ours}.attn.to_{letter}" for letter in "qkv"), f"{ours}.proj_mlp"]
        yield f"{theirs}.linear2", [f"{ours}.proj_out"]
    yield "final_layer.linear", ["proj_out"]


def _wan(transformer: Any) -> Layers:
    for number in range(len(transformer.blocks)):
        block = f"blocks.{number}"
        for theirs, ours in (("self_attn", "attn1"), ("cross_attn", "attn2")):
            for letter, layer in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("o", "to_out.0")):
                yield f"{block}.{theirs}.{letter}", [f"{block}.{ours}.{layer}"]
        yield f"{block}.ffn.0", [f"{block}.ffn.net.0.proj"]
        yield f"{block}.ffn.2", [f"{block}.ffn.net.2"]
    for theirs, ours in (("text_embedding", "text_embedder"), ("time_embedding", "time_embedder")):
        for number, linear in ((0, "linear_1"), (2, "linear_2")):
            yield f"{theirs}.{number}", [f"condition_embedder.{ours}.{linear}"]
    yield "time_projection.1", ["condition_embedder.time_proj"]
    yield "head.head", ["proj_out"]


def _qwen(transformer: Any) -> Layers:
    ends = [f"attn.{layer}" for letter in "qkv" for layer in (f"to_{letter}", f"add_{letter}_proj")]
    ends += ["attn.to_out.0", "attn.to_add_out"]
    ends += [f"{stream}_{part}" for stream in ("img", "txt") for part in ("mod.1", "mlp.net.0.proj", "mlp.net.2")]
    for number in range(len(transformer.transformer_blocks)):
        for end in ends:
            path = f"transformer_blocks.{number}.{end}"
            yield path, [path]


def _hunyuan(transformer: Any) -> Layers:
    for number in range(len(transformer.transformer_blocks)):
        ours, theirs = f"transformer_blocks.{number}", f"double_blocks.{number}"
        yield f"{theirs}.img_mod.linear", [f"{ours}.norm1.linear"]
        yield f"{theirs}.img_attn_qkv", [f"{ours}.attn.to_{letter}" for letter in "qkv"]
        yield f"{theirs}.txt_attn_qkv", [f"{ours}.attn.add_{letter}_proj" for letter in "qkv"]
        yield f"{theirs}.img_attn_proj", [f"{ours}.attn.to_out.0"]
        yield f"{theirs}.txt_attn_proj", [f"{ours}.attn.to_add_out"]
        for stream, part in (("img", "ff"), ("txt", "ff_context")):
            yield f"{theirs}.{stream}_mlp.fc1", [f"{ours}.{part}.net.0.proj"]
            yield f"{theirs}.{stream}_mlp.fc2", [f"{ours}.{part}.net.2"]
    for number in range(len(transformer.single_transformer_blocks)):
        ours, theirs = f"single_transformer_blocks.{number}", f"single_blocks.{number}"
        yield f"{theirs}.modulation.linear", [f"{ours}.norm.linear"]
        yield f"{theirs}.linear1", [*(f"{ours}.attn.to_{letter}" for letter in "qkv"), f"{ours}.proj_mlp"]
        yield f"{theirs}.linear2", [f"{ours}.proj_out"]


def resize(monkeypatch: pytest.MonkeyPatch, convert: Callable[..., Any], sizes: Mapping[int, int]) -> None:
    """Have a conversion of diffusers know the sizes of a tiny model in place of the real model's."""

    def resized(code: types.CodeType) -> types.CodeType:
        constants = tuple(
            resized(each) if isinstance(each, types.CodeType) else sizes.get(each, each) if type(each) is int else each
            for each in code.co_consts
        )
        return code.replace(co_consts=constants)

    monkeypatch.setattr(convert, "__code__", resized(convert.__code__))
