"""Checkpoint files as people have them, written from the embedded model or from tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import cache_dit
import numpy as np
import torch
from diffusers import FluxTransformer2DModel
from safetensors.torch import load_file, save_file

from cache_dit_serving.pipeline.load import EMBEDDED_FOLDER

TRANSFORMER = EMBEDDED_FOLDER / "transformer" / "diffusion_pytorch_model.safetensors"
VAE = EMBEDDED_FOLDER / "vae" / "diffusion_pytorch_model.safetensors"
Tensors = dict[str, torch.Tensor]


def transformer_tensors() -> Tensors:
    """The embedded model's transformer, in diffusers' naming."""
    return load_file(TRANSFORMER)


def save_gguf(tensors: Tensors, file: Path, kind: str = "Q8_0", architecture: str = "flux") -> Path:
    """Save tensors as GGUF. Matrices whose rows a block divides are quantised; the others stay in float32."""
    import gguf

    quantized = gguf.GGMLQuantizationType[kind]
    block, _ = gguf.GGML_QUANT_SIZES[quantized]
    writer = gguf.GGUFWriter(str(file), architecture)
    for name, tensor in tensors.items():
        values = tensor.float().numpy()
        if values.ndim == 2 and values.shape[-1] % block == 0:
            writer.add_tensor(name, gguf.quants.quantize(values, quantized), raw_dtype=quantized)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


GGUF_BLOCKS = {
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q4_1": (0, 2),
}
"""Offsets of a block's scales, each of 2 bytes, by type. The gguf package cannot quantise to most of these."""


def save_gguf_blocks(tensors: Tensors, file: Path, kind: str) -> tuple[Path, Tensors]:
    """Save tensors as GGUF with random blocks in place of the matrices that a block's length divides.

    Returns the file, and the values of those matrices by the gguf package.
    """
    import gguf

    quantized = gguf.GGMLQuantizationType[kind]
    length, size = gguf.GGML_QUANT_SIZES[quantized]
    random = np.random.default_rng(0)
    writer = gguf.GGUFWriter(str(file), "flux")
    expected = {}
    for name, tensor in tensors.items():
        if tensor.ndim != 2 or tensor.shape[-1] % length:
            writer.add_tensor(name, tensor.float().numpy())
            continue
        blocks = random.integers(0, 256, (tensor.numel() // length, size), dtype=np.uint8)
        for offset in GGUF_BLOCKS[kind]:
            scales = random.uniform(1e-4, 1e-3, len(blocks)).astype(np.float16)
            blocks[:, offset : offset + 2] = scales.view(np.uint8).reshape(-1, 2)
        data = blocks.reshape(tensor.shape[0], -1)
        writer.add_tensor(name, data, raw_dtype=quantized)
        expected[name] = torch.from_numpy(gguf.quants.dequantize(data, quantized))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file, expected


def flux_in_original_naming(tensors: Tensors) -> Tensors:
    """Flux's transformer as Black Forest Labs names it, from diffusers' naming."""
    names = (
        ("time_text_embed.timestep_embedder.linear_1", "time_in.in_layer"),
        ("time_text_embed.timestep_embedder.linear_2", "time_in.out_layer"),
        ("time_text_embed.text_embedder.linear_1", "vector_in.in_layer"),
        ("time_text_embed.text_embedder.linear_2", "vector_in.out_layer"),
        ("time_text_embed.guidance_embedder.linear_1", "guidance_in.in_layer"),
        ("time_text_embed.guidance_embedder.linear_2", "guidance_in.out_layer"),
        ("context_embedder", "txt_in"),
        ("x_embedder", "img_in"),
        ("norm1.linear", "img_mod.lin"),
        ("norm1_context.linear", "txt_mod.lin"),
        ("ff.net.0.proj", "img_mlp.0"),
        ("ff.net.2", "img_mlp.2"),
        ("ff_context.net.0.proj", "txt_mlp.0"),
        ("ff_context.net.2", "txt_mlp.2"),
        ("attn.to_out.0", "img_attn.proj"),
        ("attn.to_add_out", "txt_attn.proj"),
        ("norm.linear", "modulation.lin"),
    )
    norms = {
        "attn.norm_q.weight": "img_attn.norm.query_norm.scale",
        "attn.norm_k.weight": "img_attn.norm.key_norm.scale",
        "attn.norm_added_q.weight": "txt_attn.norm.query_norm.scale",
        "attn.norm_added_k.weight": "txt_attn.norm.key_norm.scale",
    }
    found: Tensors = {}
    for name, tensor in tensors.items():
        parts = name.split(".")
        number = ".".join(parts[:2]) if parts[0].endswith("transformer_blocks") else ""
        rest = name.removeprefix(f"{number}.") if number else name
        single = parts[0] == "single_transformer_blocks"
        block = f"{'single' if single else 'double'}_blocks.{parts[1]}." if number else ""
        layer, _, end = rest.rpartition(".")
        if layer in ("attn.to_k", "attn.to_v", "attn.add_k_proj", "attn.add_v_proj", "proj_mlp"):
            continue
        fused = {
            "attn.to_q": ("linear1", ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"))
            if single
            else ("img_attn.qkv", ("attn.to_q", "attn.to_k", "attn.to_v")),
            "attn.add_q_proj": ("txt_attn.qkv", ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")),
        }
        if layer in fused:
            theirs, layers = fused[layer]
            found[f"{block}{theirs}.{end}"] = torch.cat([tensors[f"{number}.{each}.{end}"] for each in layers])
        elif rest in norms:
            scale = norms[rest].removeprefix("img_attn.") if single else norms[rest]
            found[block + scale] = tensor
        elif layer == "norm_out.linear":
            found[f"final_layer.adaLN_modulation.1.{end}"] = torch.cat(tensor.chunk(2)[::-1])
        elif layer == "proj_out":
            found[f"{block}linear2.{end}" if single else f"final_layer.linear.{end}"] = tensor
        else:
            found[f"{block}{dict(names)[layer]}.{end}"] = tensor
    return found


def save_gguf_encoder(tensors: Tensors, file: Path, kind: str) -> tuple[Path, Tensors]:
    """Save a T5 encoder as llama.cpp does. Returns the file, and the tensors that it holds after rounding."""
    import gguf

    blocks = 1 + max(int(name.split(".")[2]) for name in tensors if name.startswith("encoder.block."))
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.T5, blocks)
    renamed, rounded = {}, {}
    quantized = gguf.GGMLQuantizationType[kind]
    block, _ = gguf.GGML_QUANT_SIZES[quantized]
    for name, tensor in tensors.items():
        renamed[f"{names.get_name(name.removesuffix('.weight'))}.weight"] = tensor
        values = tensor.float().numpy()
        if values.ndim == 2 and values.shape[-1] % block == 0:
            values = gguf.quants.dequantize(gguf.quants.quantize(values, quantized), quantized)
        rounded[name] = torch.from_numpy(values)
    return save_gguf(renamed, file, kind, "t5encoder"), rounded


def scaled_fp8(tensors: Tensors) -> Tensors:
    """Tensors as ComfyUI's scaled FP8 has them: each matrix divided by its scale, which lies beside it."""
    found: Tensors = {"scaled_fp8": torch.empty(2, dtype=torch.float8_e4m3fn)}
    for name, tensor in tensors.items():
        layer = name.removesuffix(".weight")
        if tensor.ndim != 2 or layer == name:
            found[name] = tensor
            continue
        scale = (tensor.float().abs().max() / torch.finfo(torch.float8_e4m3fn).max).reshape(1)
        found[name] = (tensor.float() / scale).to(torch.float8_e4m3fn)
        found[f"{layer}.scale_weight"] = scale
        found[f"{layer}.scale_input"] = torch.ones(1)
    return found


def save(tensors: dict[str, Any], file: Path) -> Path:
    """Save tensors as safetensors."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, {"format": "pt"})
    return file


def as_comfyui(tensors: Tensors) -> Tensors:
    """The denoiser's tensors with the prefix that ComfyUI's files have."""
    return {f"model.diffusion_model.{name}": tensor for name, tensor in tensors.items()}


def wan_in_original_naming(tensors: Tensors) -> Tensors:
    """Wan's transformer, from diffusers' naming."""
    renamed = {
        "condition_embedder.time_embedder.linear_1": "time_embedding.0",
        "condition_embedder.time_embedder.linear_2": "time_embedding.2",
        "condition_embedder.text_embedder.linear_1": "text_embedding.0",
        "condition_embedder.text_embedder.linear_2": "text_embedding.2",
        "condition_embedder.time_proj": "time_projection.1",
        "attn1": "self_attn",
        "attn2": "cross_attn",
        ".to_out.0.": ".o.",
        ".to_q.": ".q.",
        ".to_k.": ".k.",
        ".to_v.": ".v.",
        "ffn.net.0.proj": "ffn.0",
        "ffn.net.2": "ffn.2",
        "norm2": "norm_third",
        "norm3": "norm2",
        "norm_third": "norm3",
        "scale_shift_table": "modulation",
        "proj_out": "head.head",
    }
    found = {}
    for name, tensor in tensors.items():
        original = "head.modulation" if name == "scale_shift_table" else name
        for ours, theirs in renamed.items():
            original = original.replace(ours, theirs)
        found[original] = tensor
    return found


def sd3_whole(folder: Path) -> Tensors:
    """A Stable Diffusion 3 folder's transformer and VAE, in the original naming of its one file."""
    ours = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    blocks = 1 + max(int(name.split(".")[1]) for name in ours if name.startswith("transformer_blocks."))
    found = {
        "pos_embed": ours["pos_embed.pos_embed"],
        **_moved(ours, "pos_embed.proj", "x_embedder.proj"),
        **_moved(ours, "context_embedder", "context_embedder"),
        **_moved(ours, "proj_out", "final_layer.linear"),
        **_moved(ours, "norm_out.linear", "final_layer.adaLN_modulation.1", swap=True),
    }
    for embedder, theirs in (("timestep", "t"), ("text", "y")):
        for number, position in ((1, 0), (2, 2)):
            place = f"time_text_embed.{embedder}_embedder.linear_{number}"
            found |= _moved(ours, place, f"{theirs}_embedder.mlp.{position}")
    for number in range(blocks):
        block, joint, last = f"transformer_blocks.{number}", f"joint_blocks.{number}", number == blocks - 1
        for side, norm, projections, out, layers in (
            ("x_block", "norm1", ("to_q", "to_k", "to_v"), "to_out.0", "ff"),
            ("context_block", "norm1_context", ("add_q_proj", "add_k_proj", "add_v_proj"), "to_add_out", "ff_context"),
        ):
            of_context = side == "context_block"
            for end in ("weight", "bias"):
                parts = [ours[f"{block}.attn.{each}.{end}"] for each in projections]
                found[f"{joint}.{side}.attn.qkv.{end}"] = torch.cat(parts)
            modulation = f"{joint}.{side}.adaLN_modulation.1"
            found |= _moved(ours, f"{block}.{norm}.linear", modulation, swap=last and of_context)
            if not (last and of_context):
                found |= _moved(ours, f"{block}.attn.{out}", f"{joint}.{side}.attn.proj")
                found |= _moved(ours, f"{block}.{layers}.net.0.proj", f"{joint}.{side}.mlp.fc1")
                found |= _moved(ours, f"{block}.{layers}.net.2", f"{joint}.{side}.mlp.fc2")
    return as_comfyui(found) | _vae_whole(load_file(folder / "vae" / "diffusion_pytorch_model.safetensors"))


def _moved(tensors: Tensors, ours: str, theirs: str, *, swap: bool = False) -> Tensors:
    """A layer's weight and bias under another name; `swap` exchanges the halves, which are shift and scale."""
    found = {}
    for end in ("weight", "bias"):
        tensor = tensors[f"{ours}.{end}"]
        found[f"{theirs}.{end}"] = torch.cat(tensor.chunk(2)[::-1]) if swap else tensor
    return found


def _vae_whole(tensors: Tensors) -> Tensors:
    """A VAE of one level, as whole files name it."""
    renamed = (
        ("conv_norm_out", "norm_out"),
        ("mid_block.attentions.0.group_norm", "mid.attn_1.norm"),
        ("mid_block.attentions.0.to_out.0", "mid.attn_1.proj_out"),
        ("mid_block.attentions.0.to_", "mid.attn_1."),
        ("mid_block.resnets.0", "mid.block_1"),
        ("mid_block.resnets.1", "mid.block_2"),
        ("down_blocks.0.resnets", "down.0.block"),
        ("up_blocks.0.resnets", "up.0.block"),
        ("conv_shortcut", "nin_shortcut"),
    )
    found = {}
    for name, tensor in tensors.items():
        original = name
        for ours, theirs in renamed:
            original = original.replace(ours, theirs)
        found[f"first_stage_model.{original}"] = tensor
    return found


def save_svdquant(folder: Path, quant_type: str = "svdq_int4_r16_dq") -> Path:
    """Quantise the embedded model's transformer by cache-dit's SVDQuant, and save it as its converter does on a GPU.

    Quantising and packing run on a CPU; only the layers' forward pass needs the CUDA kernels.
    """
    with (
        mock.patch("cache_dit.kernels.svdq_extension_is_available", return_value=True),
        mock.patch("cache_dit.quantization.svdquant.ptq._normalize_dtype", return_value=torch.bfloat16),
    ):
        transformer = FluxTransformer2DModel.from_pretrained(
            EMBEDDED_FOLDER, subfolder="transformer", dtype=torch.bfloat16
        )
        config = cache_dit.QuantizeConfig(quant_type=quant_type, serialize_to=str(folder))
        cache_dit.quantize(transformer, config)
    return folder / f"{quant_type}.safetensors"
