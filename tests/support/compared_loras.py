"""Comparison of LoRA files on this server with plain diffusers, or PEFT, of the same files: alone and in mixes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from safetensors.torch import load_file

from cache_dit_serving.config.settings import LoraSettings
from tests.support.lora_formats import PEFT

SCALES = ({"one": 0.5}, {"one": 1.0}, {"one": 0.5, "other": 1.0})


def settings_for(names: list[str], folder: Path) -> list[LoraSettings]:
    return [LoraSettings(name=name, path=str(folder / name), scale=0.0) for name in names]


def put_by_diffusers(pipe: Any, names: list[str], folder: Path) -> None:
    """Load the files, or PEFT's folders, with plain diffusers and PEFT."""
    for name in names:
        if name in PEFT:
            config: Any = LoraConfig.from_pretrained(str(folder / name))
            inject_adapter_in_model(config, pipe.transformer, adapter_name=name)
            tensors = {
                key.removeprefix("base_model.model."): value
                for key, value in load_file(folder / name / "adapter_model.safetensors").items()
            }
            result: Any = set_peft_model_state_dict(pipe.transformer, tensors, adapter_name=name)
            assert not result.unexpected_keys
            pipe.transformer._hf_peft_config_loaded = True
        else:
            pipe.load_lora_weights(str(folder / name), weight_name=f"{name}.safetensors", adapter_name=name)
    pipe.transformer.eval()


def mixes(names: list[str]) -> list[tuple[str, dict[str, float]]]:
    """By format: itself at two scales, and beside another."""
    return [
        (name, {name if key == "one" else other: scale for key, scale in scales.items()})
        for name, other in zip(names, [*names[1:], names[0]], strict=True)
        for scales in SCALES
    ]


def same(names: list[str], ours: Callable[[Any], Any], theirs: Callable[[Any], Any], pipe: Any) -> None:
    without = ours([])
    for name, scales in mixes(names):
        drawn = ours([{"name": key, "scale": scale} for key, scale in scales.items()])
        pipe.set_adapters(list(scales), list(scales.values()))
        assert np.array_equal(drawn, theirs(pipe)), (name, scales)
        assert not np.array_equal(drawn, without), name
