"""Pipelines of published shapes, without their weights: `shapes.json` has each component's configuration.

A denoiser or autoencoder is built at full size, without data on the device. A text encoder is built twice: at full size
without memory, to count its weights, and with few weights on the host, to encode a prompt into embeddings of full size.
"""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import ModelMixin

from tests.support.families import ENTRIES, made
from tools.full_size.dataless import DEVICE, HOST, MODE, on_device, on_host

SHAPES: dict[str, Any] = json.loads((Path(__file__).parent / "shapes.json").read_text(encoding="utf-8"))
"""`components` that models share, `models` by configuration, and configurations whose shapes are `unknown`."""
QUANTIZABLE = ("transformer", "transformer_2")
ENCODERS = ("encode_prompt", "encode_image", "_get_gemma_prompt_embeds", "generate_prior_tokens")


def recipe(model: str, name: str) -> dict[str, Any] | None:
    """Return the class and configuration of a model's component; None if `shapes.json` has none.

    A configuration that is not shared names only what differs from the class's defaults.
    """
    entry = SHAPES["models"][model]
    found = entry["components"].get(name)
    if found is None:
        return None
    if isinstance(found, str):
        shared: dict[str, Any] = SHAPES["components"][found]
        return shared
    its = ENTRIES[entry["entry"]]["components"][name]
    return {"class": [its.get("module", its["library"]), its["class"]], "config": found}


def empty(found: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """Return a network without data in its weights, as diffusers and transformers build it before they load them.

    Buffers are real: neither library has them in a checkpoint.
    """
    module, name = found["class"]
    # accelerate's context separates tied weights, which language models have and denoisers do not.
    without_data = torch.device("meta") if module == "transformers" else init_empty_weights(include_buffers=False)
    with without_data, default_dtype(dtype):
        network = _made(getattr(importlib.import_module(module), name), found["config"])
    return network.eval().requires_grad_(False)


def thin(found: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """Return a text or image encoder whose outputs are of full width, with few weights."""
    module, name = found["class"]
    with default_dtype(dtype):
        network = _made(getattr(importlib.import_module(module), name), _merged(found["config"], found["thin"]))
    return network.eval().requires_grad_(False)


def to_device(network: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """Give a network weights without data on the device; what its class keeps in float32 is in float32."""
    kept = set(getattr(network, "_keep_in_fp32_modules", None) or ()) if isinstance(network, ModelMixin) else set()
    for name, module in network.named_modules():
        for key, parameter in list(module._parameters.items()):
            if parameter is not None:
                its = torch.float32 if kept & {*name.split("."), key} else dtype
                with MODE:
                    made = torch.empty(parameter.shape, dtype=its, device=DEVICE)
                    module._parameters[key] = torch.nn.Parameter(made, requires_grad=False)
        for key, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[key] = on_device(buffer)
    return network


def weights(network: torch.nn.Module, dtype: torch.dtype) -> int:
    """Return the bytes of a network's weights and buffers at a dtype."""
    kept = set(getattr(network, "_keep_in_fp32_modules", None) or ()) if isinstance(network, ModelMixin) else set()
    sizes = (
        parameter.numel() * (torch.float32 if kept & set(name.split(".")) else dtype).itemsize
        for name, parameter in network.named_parameters()
    )
    return sum(sizes) + sum(buffer.nbytes for buffer in network.buffers())


def build(model: str, dtype: torch.dtype) -> Any:
    """Return the pipeline of a configuration's model: networks on the device without data, thin encoders on the host.

    Its encoders run on the host, and their results are on the device.
    """
    import diffusers

    entry = ENTRIES[SHAPES["models"][model]["entry"]]
    parts: dict[str, Any] = {}
    for name, its in entry["components"].items():
        found = recipe(model, name)
        if found is None:
            parts[name] = made(its)
        elif "thin" in found:
            parts[name] = thin(found, dtype)
        else:
            parts[name] = to_device(empty(found, dtype), dtype)
    _fit_processors(parts)
    cls = getattr(diffusers, entry["class"])
    device = {"now": DEVICE}
    pipe = type(cls.__name__, (cls,), {"_execution_device": property(lambda self: device["now"])})(**parts)
    for name in ENCODERS:
        if hasattr(pipe, name):
            setattr(pipe, name, _encoding(getattr(pipe, name), device))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _fit_processors(parts: dict[str, Any]) -> None:
    """Have the processors make images of the size that the image encoder takes."""
    if (encoder := parts.get("image_encoder")) is None:
        return
    side = encoder.config.image_size
    for name in ("image_processor", "feature_extractor"):
        if name in parts:
            parts[name] = type(parts[name])(
                size={"height": side, "width": side}, crop_size={"height": side, "width": side}
            )


def _encoding(encode: Any, device: dict[str, torch.device]) -> Any:
    @functools.wraps(encode)
    def encoded(*args: Any, **kwargs: Any) -> Any:
        if device["now"] == HOST:  # one encoder calls another
            return encode(*args, **kwargs)
        device["now"] = HOST
        try:
            with torch.utils._python_dispatch._disable_current_modes():
                encodings = encode(*on_host(args), **on_host(kwargs))
        finally:
            device["now"] = DEVICE
        return on_device(encodings)

    return encoded


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Create tensors of a dtype in the body, where the code names none."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _made(cls: Any, config: Mapping[str, Any]) -> Any:
    if hasattr(cls, "config_class"):
        return cls(cls.config_class(**config))
    return cls.from_config(dict(config)) if hasattr(cls, "from_config") else cls(**config)


def _merged(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with changes, nested ones included."""
    merged = dict(config)
    for key, value in changes.items():
        merged[key] = _merged(config[key], value) if isinstance(value, dict) else value
    return merged
