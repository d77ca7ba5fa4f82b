"""Pipelines of published shapes, without their weights: `shapes.json` has each component's configuration.

A denoiser or autoencoder is built at full size, without data on the device. A text encoder is built twice: at full size
without memory, to count its weights, and with few weights on the host, to encode a prompt into embeddings of full size.
"""

from __future__ import annotations

import copy
import functools
import importlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import ModelMixin
from diffusers.models.autoencoders.autoencoder_kl_hunyuanvideo15 import HunyuanVideo15AttnBlock
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_leaves

from tests.support.families import ENTRIES, made
from tools.full_size.dataless import DEVICE, HOST, MODE, on_device, on_device_with_values, on_host

SHAPES: dict[str, Any] = json.loads((Path(__file__).parent / "shapes.json").read_text(encoding="utf-8"))
"""`components` that models share, `models` by configuration, and configurations whose shapes are `unknown`."""
UNVERIFIED = re.compile("unverified|from memory")
"""A source that nobody has read, or not for all values."""
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


def sources(model: str) -> dict[str, str]:
    """Return the source of each component's shapes."""
    entry = SHAPES["models"][model]
    return {
        name: SHAPES["components"][found]["source"] if isinstance(found, str) else entry["source"]
        for name, found in entry["components"].items()
    }


def unverified(model: str) -> list[str]:
    """Return the components whose shapes were compared with no published configuration."""
    return [name for name, source in sources(model).items() if UNVERIFIED.search(source)]


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
    network.to = functools.partial(_converted, network)
    return network


def _converted(network: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    """Convert a network's weights; torch's own `to` does not exchange weights without data."""
    for module in network.modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[key] = torch.nn.Parameter(parameter.to(dtype), requires_grad=False)
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
            parts[name] = _reached_from_the_device(thin(found, dtype))
        else:
            parts[name] = to_device(empty(found, dtype), dtype)
    _fit_processors(parts)
    HunyuanVideo15AttnBlock.prepare_causal_attention_mask = staticmethod(_mask_at_once)
    cls = getattr(diffusers, entry["class"])
    device = {"now": DEVICE}
    pipe = type(cls.__name__, (cls,), {"_execution_device": property(lambda self: device["now"])})(**parts)
    for name in ENCODERS:
        if hasattr(pipe, name):
            setattr(pipe, name, _encoding(getattr(pipe, name), device))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _mask_at_once(frames: int, pixels: int, dtype: torch.dtype, device: Any, batch_size: int | None = None) -> Any:
    """Return the mask of HunyuanVideo 1.5's autoencoder, which diffusers 0.42.1 fills row by row, in as much memory.

    A video of 720 px has 111,600 rows.
    """
    mask = torch.full((frames * pixels, frames * pixels), 0.0, dtype=dtype, device=device)
    return mask if batch_size is None else mask.unsqueeze(0).expand(batch_size, -1, -1)


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
        return on_device_with_values(encodings)

    return encoded


def _reached_from_the_device(encoder: torch.nn.Module) -> torch.nn.Module:
    """Have an encoder on the host take inputs on the device, where a pipeline calls it by itself."""
    forward = encoder.forward

    @functools.wraps(forward)
    def reached(*args: Any, **kwargs: Any) -> Any:
        if not any(isinstance(leaf, FakeTensor) for leaf in tree_leaves((args, kwargs))):
            return forward(*args, **kwargs)
        with torch.utils._python_dispatch._disable_current_modes():
            encodings = forward(*on_host(args), **on_host(kwargs))
        return on_device(encodings)

    encoder.forward = reached
    return encoder


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
        return cls(cls.config_class(**copy.deepcopy(dict(config))))  # transformers writes into nested configurations
    return cls.from_config(dict(config)) if hasattr(cls, "from_config") else cls(**config)


def _merged(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with changes, nested ones included."""
    merged = dict(config)
    for key, value in changes.items():
        merged[key] = _merged(config[key], value) if isinstance(value, dict) else value
    return merged
