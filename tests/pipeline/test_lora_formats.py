"""Each format of a LoRA's file draws as plain diffusers, or PEFT, draws with the same file, to the bit."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from cache_dit_serving.pipeline.load import EMBEDDED_FOLDER
from cache_dit_serving.pipeline.protocol import Loaded
from tests.support.alone import drawn_by_diffusers, loaded_by_diffusers
from tests.support.by_diffusers import embedded_by_diffusers
from tests.support.compared_loras import put_by_diffusers, same, settings_for
from tests.support.conformance import draw as draw_family
from tests.support.conformance import settings_of
from tests.support.families import save_family
from tests.support.in_process import UNCACHED, draw, load, unwarmed
from tests.support.lora_formats import FLUX, PEFT, WAN, save_format, save_lokr
from tests.support.loras import with_loras, write_lora

STEPS = 2


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> tuple[Loaded, Path]:
    folder = tmp_path_factory.mktemp("flux")
    pipe: Any = diffusers.DiffusionPipeline.from_pretrained(EMBEDDED_FOLDER, dtype=torch.float32)
    for name in (*FLUX, *PEFT):
        save_format(pipe, name, folder / name)
    return load(unwarmed(with_loras(UNCACHED, *settings_for([*FLUX, *PEFT], folder)))), folder


@pytest.mark.verified
@pytest.mark.filterwarnings("default")
def test_a_flux_lora_of_each_format_draws_as_diffusers_has_it(flux: tuple[Loaded, Path]) -> None:
    loaded, folder = flux
    names = [*FLUX, *PEFT]
    pipe: Any = diffusers.DiffusionPipeline.from_pretrained(EMBEDDED_FOLDER, dtype=torch.float32)
    put_by_diffusers(pipe, names, folder)

    def theirs(pipe: Any) -> Any:
        return embedded_by_diffusers(pipe, loaded, STEPS)

    same(names, lambda loras: draw(loaded, num_inference_steps=STEPS, loras=loras).media.array, theirs, pipe)


def test_what_each_file_holds_is_told(flux: tuple[Loaded, Path]) -> None:
    loaded, _ = flux
    contents = loaded.runner.loras()
    expected = {
        "diffusers": "diffusers",
        "metadata": "diffusers",
        "alphas": "diffusers",
        "dora": "diffusers",
        "kohya": "kohya",
        "kohya-8steps": "kohya",
        "xlabs": "XLabs",
        **dict.fromkeys(PEFT, "PEFT"),
    }
    assert {name: each.format for name, each in contents.items()} == expected
    assert contents["kohya"].parts.keys() == {"transformer", "text_encoder"}
    assert contents["kohya"].left_out is None
    # diffusers applies the text encoder of kohya's files named lora_te1, and skips the other, which is not silent here.
    assert contents["kohya-8steps"].parts.keys() == {"transformer"}
    assert "lora_te2" in str(contents["kohya-8steps"].left_out)
    assert [name for name, each in contents.items() if each.suggested_steps] == ["kohya-8steps"]
    assert contents["kohya-8steps"].suggested_steps == 8
    assert contents["kohya-8steps"].suggested_shift == 3.0


@pytest.mark.verified
@pytest.mark.filterwarnings("default")
def test_a_wan_lora_of_each_format_draws_as_diffusers_has_it(tmp_path: Path) -> None:
    model = save_family("Wan", tmp_path / "model")
    pipe = loaded_by_diffusers("Wan", model)
    names = list(WAN)
    for name in names:
        save_format(pipe, name, tmp_path / name)
    loaded = load(with_loras(settings_of("Wan", model), *settings_for(names, tmp_path)))
    with warnings.catch_warnings():
        put_by_diffusers(pipe, names, tmp_path)

    def ours(loras: Any) -> Any:
        return draw_family("Wan", loaded, speed="lossless", loras=loras).media.array

    same(names, ours, lambda pipe: drawn_by_diffusers("Wan", pipe), pipe)
    contents = loaded.runner.loras()
    assert {name: each.format for name, each in contents.items()} == WAN
    assert "norm3.diff" in str(contents["lightx2v"].left_out)


@pytest.mark.verified
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("family", "prefix"),
    [("ZImage", "diffusion_model."), ("Flux2Klein", "transformer.")],
)
def test_a_lokr_draws_as_diffusers_has_it(family: str, prefix: str, tmp_path: Path) -> None:
    model = save_family(family, tmp_path / "model")
    pipe = loaded_by_diffusers(family, model)
    files = {name: tmp_path / name / f"{name}.safetensors" for name in ("lokr", "lora")}
    for file in files.values():
        file.parent.mkdir()
    save_lokr(pipe, files["lokr"], prefix)
    write_lora(pipe, files["lora"])
    loaded = load(with_loras(settings_of(family, model), *settings_for([*files], tmp_path)))
    put_by_diffusers(pipe, [*files], tmp_path)

    def ours(loras: Any) -> Any:
        return draw_family(family, loaded, speed="lossless", loras=loras).media.array

    same([*files], ours, lambda pipe: drawn_by_diffusers(family, pipe), pipe)
    assert loaded.runner.loras()["lokr"].format == "LoKr"


def test_an_adapter_with_dropout_draws_twice_the_same(flux: tuple[Loaded, Path]) -> None:
    loaded, folder = flux
    assert json.loads((folder / "peft" / "adapter_config.json").read_text())["lora_dropout"] == 0.5
    first, second = (draw(loaded, num_inference_steps=STEPS, loras=[{"name": "peft"}]).media.array for _ in range(2))
    assert np.array_equal(first, second)
