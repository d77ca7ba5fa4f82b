"""LoRAs of several families: drawn with as diffusers does, with and without the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from cache_dit_serving.config.settings import LoraSettings, Settings
from cache_dit_serving.errors import LoadError
from tests.support.conformance import arguments_of, draw, settings_of
from tests.support.families import save_family
from tests.support.in_process import load
from tests.support.loras import save_lora

pytestmark = pytest.mark.filterwarnings("default")


def with_loras(settings: Settings, *loras: LoraSettings) -> Settings:
    return settings.model_copy(update={"model": settings.model.model_copy(update={"loras": loras})})


def by_diffusers(name: str, folder: Path, file: Path, scale: float, **into: Any) -> np.ndarray[Any, Any]:
    pipe: Any = diffusers.DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(file.parent, weight_name=file.name, adapter_name="one", **into)
    pipe.set_adapters(["one"], [scale])
    call = arguments_of(name) | {"output_type": "np"}
    torch.manual_seed(1)
    made: np.ndarray[Any, Any] = pipe(**call, generator=torch.Generator("cpu").manual_seed(1))[0][0]
    return made


@pytest.mark.parametrize(
    "name",
    [
        "CogVideoX",
        "Flux2",
        "FluxKontext",
        "HunyuanVideo",
        "LTX",
        "LTX2",
        "QwenImage",
        "StableDiffusion3",
        "Wan",
        "ZImage",
    ],
)
def test_a_family_draws_with_a_lora_as_diffusers_does(name: str, tmp_path: Path) -> None:
    folder = save_family(name, tmp_path / "model")
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    file = save_lora(pipe, tmp_path / "one.safetensors", seed=1)
    loaded = load(with_loras(settings_of(name, folder), LoraSettings(name="one", path=str(file), scale=0.0)))
    chosen = {"loras": [{"name": "one", "scale": 0.8}]}
    without = draw(name, loaded, speed="lossless").media.array
    drawn = draw(name, loaded, speed="lossless", seed=1, **chosen).media.array
    assert np.array_equal(drawn, by_diffusers(name, folder, file, 0.8))
    assert not np.array_equal(drawn, draw(name, loaded, speed="lossless", seed=1).media.array)
    assert draw(name, loaded, **chosen).record.cache.engaged
    assert np.array_equal(draw(name, loaded, speed="lossless").media.array, without)


def test_each_transformer_of_wan_2_2_has_its_own(tmp_path: Path) -> None:
    name = "Wan-2.2"
    folder = save_family(name, tmp_path / "model")
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    file = save_lora(pipe, tmp_path / "one.safetensors", seed=1)
    loras = [
        LoraSettings(name="high", path=str(file), scale=0.0),
        LoraSettings(name="low", path=str(file), scale=0.0, transformer="transformer_2"),
    ]
    loaded = load(with_loras(settings_of(name, folder), *loras))
    for chosen, into in (("high", {}), ("low", {"load_into_transformer_2": True})):
        drawn = draw(name, loaded, speed="lossless", seed=1, loras=[{"name": chosen, "scale": 1.0}]).media.array
        assert np.array_equal(drawn, by_diffusers(name, folder, file, 1.0, **into))


def test_a_class_without_loras_says_so(tmp_path: Path) -> None:
    folder = save_family("DiT", tmp_path)
    with pytest.raises(LoadError, match="diffusers cannot put a LoRA on a DiTPipeline"):
        load(with_loras(settings_of("DiT", folder), LoraSettings(name="one", path="x.safetensors")))
