"""Quantisation schemes of files, recognised by the names and types of tensors."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

from cache_dit_serving.checkpoints import svdquant
from cache_dit_serving.safetensors_header import TensorEntry


class Scheme(StrEnum):
    """Way in which the weights of a file are quantised. The value is its name for people."""

    GGUF = "GGUF"
    FP8 = "FP8 without scales"
    SCALED_FP8 = "scaled FP8"
    COMFY = "ComfyUI's mixed quantisation"
    NUNCHAKU = "Nunchaku's SVDQuant"
    CACHE_DIT = "cache-dit's SVDQuant"
    BITSANDBYTES = "bitsandbytes"
    NVFP4 = "NVFP4"
    INT8 = "INT8"


SCALE = ".scale_weight"
"""End of the name of a layer's scale in scaled FP8."""
INPUT_SCALE = ".scale_input"
"""End of the name of a scale for activations, which a dequantised layer has no use for."""
SCALES = re.compile(r"\.(scale_weight|weight_scale|scale_input|input_scale|weight_scale_inv)$")
"""Names of the scales that quantised weights are multiplied by, in files of any scheme."""
MARKER = "scaled_fp8"
"""Tensor that marks scaled FP8; it has no values of the model."""
GGUF_PLAIN = frozenset({"F64", "F32", "F16", "BF16", "I8", "I16", "I32", "I64"})
"""GGML types that are no quantisation."""
LOADED_GGML = frozenset(
    {"F32", "F16", "BF16", "IQ4_NL", "IQ4_XS", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "Q6_K", "Q5_K", "Q4_K", "Q3_K"}
    | {"Q2_K"}
)
"""GGML types that diffusers 0.42.1 dequantises."""
MARKS = (
    (re.compile(r"\.comfy_quant$"), Scheme.COMFY),
    (re.compile(r"(^|\.)scaled_fp8$|\.scale_weight$"), Scheme.SCALED_FP8),
    (re.compile(r"\.quant_state\.bitsandbytes__|\.weight\.absmax$|\.SCB$"), Scheme.BITSANDBYTES),
    (re.compile(r"\.qweight$|\.wscales$|\.wzeros$|\.smooth(_factor)?(_orig)?$"), Scheme.NUNCHAKU),
    (re.compile(r"\.weight_scale_2$"), Scheme.NVFP4),
)
"""Names that show a scheme. An earlier one wins."""
WAY_OUT = "take the file in bfloat16, float16, FP8 or GGUF"
REFUSED = {
    Scheme.COMFY: "diffusers does not load it, and without its scales the weights mean nothing",
    Scheme.NUNCHAKU: "neither diffusers nor cache-dit has a loader for such a file; diffusers loads a folder with "
    "quant_method nunchaku_lite, on CUDA with the package kernels",
    Scheme.BITSANDBYTES: "diffusers loads it from folders alone, with their configuration",
    Scheme.NVFP4: "diffusers loads it from folders alone, with their configuration",
    Scheme.INT8: "diffusers loads it from folders alone, with their configuration",
}
"""Schemes that are not loaded from a file, with the reason."""


def scheme_of(
    tensors: Mapping[str, TensorEntry], metadata: Mapping[str, str] = MappingProxyType({}), *, gguf: bool
) -> Scheme | None:
    """Return the scheme of a file with these tensors and metadata; None: its weights are not quantised."""
    if svdquant.METADATA in metadata:
        return Scheme.CACHE_DIT
    if gguf:
        return Scheme.GGUF if any(entry.dtype not in GGUF_PLAIN for entry in tensors.values()) else None
    for mark, scheme in MARKS:
        if any(mark.search(name) for name in tensors):
            return scheme
    weights = Counter[str]()
    for name, entry in tensors.items():
        if name.endswith(".weight") and len(entry.shape) > 1:
            weights[entry.dtype] += entry.size_bytes
    if not weights:
        return None
    (most, _), *_ = weights.most_common(1)
    if any(name.endswith((".weight_scale", ".scale")) for name in tensors) and most.startswith("F8"):
        return Scheme.COMFY
    if most.startswith("F8"):
        return Scheme.FP8
    return Scheme.INT8 if most in ("I8", "U8") else None


def scheme_refusal(scheme: Scheme | None, tensors: Mapping[str, TensorEntry]) -> str | None:
    """Return the reason that weights of a scheme are not loaded from a file, with the remedy; None: they are."""
    if scheme is Scheme.GGUF and (unknown := sorted({entry.dtype for entry in tensors.values()} - LOADED_GGML)):
        return f"its GGUF types {', '.join(unknown)} are unknown to diffusers; take a K-quant, such as Q4_K"
    return f"it is quantised as {scheme}: {REFUSED[scheme]}; {WAY_OUT}" if scheme in REFUSED else None
