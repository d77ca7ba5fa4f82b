"""LoRAs of models with two transformers, and of none. The conformance suite holds every class to diffusers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest

from cache_dit_serving.config.settings import LoraSettings
from cache_dit_serving.errors import LoadError
from tests.support.alone import by_diffusers
from tests.support.conformance import draw, settings_of
from tests.support.families import save_family
from tests.support.in_process import load
from tests.support.loras import save_lora, with_loras

pytestmark = pytest.mark.filterwarnings("default")


def with_lora(file: Path, scale: float, **into: Any) -> Callable[[Any], None]:
    def prepare(pipe: Any) -> None:
        pipe.load_lora_weights(file.parent, weight_name=file.name, adapter_name="one", **into)
        pipe.set_adapters(["one"], [scale])

    return prepare


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


@pytest.mark.parametrize("name", ["DiT", "PRX"])  # PRX's class takes LoRAs for its text encoder alone
def test_a_class_without_loras_says_so(name: str, tmp_path: Path) -> None:
    folder = save_family(name, tmp_path)
    with pytest.raises(LoadError, match=f"diffusers cannot put a LoRA on a {name}Pipeline"):
        load(with_loras(settings_of(name, folder), LoraSettings(name="one", path="x.safetensors")))
