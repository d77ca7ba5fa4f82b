"""LoRAs of several families: drawn with as diffusers does, with and without the cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest

from cache_dit_serving.config.settings import LoraSettings
from cache_dit_serving.errors import LoadError
from tests.support.conformance import by_diffusers, draw, settings_of
from tests.support.families import save_family
from tests.support.in_process import load
from tests.support.loras import save_lora, with_loras

pytestmark = pytest.mark.filterwarnings("default")


def with_lora(file: Path, scale: float, **into: Any) -> Callable[[Any], None]:
    def prepare(pipe: Any) -> None:
        pipe.load_lora_weights(file.parent, weight_name=file.name, adapter_name="one", **into)
        pipe.set_adapters(["one"], [scale])

    return prepare


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
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
    file = save_lora(pipe, tmp_path / "one.safetensors", seed=1)
    loaded = load(with_loras(settings_of(name, folder), LoraSettings(name="one", path=str(file), scale=0.0)))
    chosen = {"loras": [{"name": "one", "scale": 0.8}]}
    without = draw(name, loaded, speed="lossless").media.array
    drawn = draw(name, loaded, speed="lossless", **chosen).media.array
    assert np.array_equal(drawn, by_diffusers(name, folder, prepare=with_lora(file, 0.8)))
    assert not np.array_equal(drawn, without)
    assert draw(name, loaded, **chosen).record.cache.engaged
    assert np.array_equal(draw(name, loaded, speed="lossless").media.array, without)


def test_each_transformer_of_wan_2_2_has_its_own(tmp_path: Path) -> None:
    name = "Wan-2.2"
    folder = save_family(name, tmp_path / "model")
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder)
    file = save_lora(pipe, tmp_path / "one.safetensors", seed=1)
    loras = [
        LoraSettings(name="high", path=str(file), scale=0.0),
        LoraSettings(name="low", path=str(file), scale=0.0, transformer="transformer_2"),
    ]
    loaded = load(with_loras(settings_of(name, folder), *loras))
    for chosen, into in (("high", {}), ("low", {"load_into_transformer_2": True})):
        drawn = draw(name, loaded, speed="lossless", loras=[{"name": chosen, "scale": 1.0}]).media.array
        assert np.array_equal(drawn, by_diffusers(name, folder, prepare=with_lora(file, 1.0, **into)))


def test_a_class_without_loras_says_so(tmp_path: Path) -> None:
    folder = save_family("DiT", tmp_path)
    with pytest.raises(LoadError, match="diffusers cannot put a LoRA on a DiTPipeline"):
        load(with_loras(settings_of("DiT", folder), LoraSettings(name="one", path="x.safetensors")))
