"""Checkpoint files as people have them, written from the embedded model or from tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
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
