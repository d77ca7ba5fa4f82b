"""LoRA files in the namings of trainers for Flux Kontext, FastWan, Qwen-Image and HunyuanVideo, against diffusers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.loaders import lora_conversion_utils

from cache_dit_serving.errors import LoadError
from cache_dit_serving.pipeline.load import EMBEDDED_FOLDER
from cache_dit_serving.pipeline.protocol import Loaded
from tests.support.alone import drawn_by_diffusers, loaded_by_diffusers
from tests.support.by_diffusers import embedded_by_diffusers
from tests.support.compared_loras import put_by_diffusers, same, settings_for
from tests.support.conformance import draw as draw_family
from tests.support.conformance import settings_of
from tests.support.families import save_family
from tests.support.in_process import UNCACHED, draw, load, unwarmed
from tests.support.lora_namings import (
    HUNYUAN,
    QWEN,
    resize,
    save_fal_kontext,
    save_fast_wan,
    save_hunyuan,
    save_hunyuan_kohya,
    save_hunyuan_refiner,
    save_qwen,
)
from tests.support.loras import with_loras, write_lora

STEPS = 2
WIDTH = 3072
Save = Callable[[Any, Path], None]


def saved(pipe: Any, folder: Path, files: dict[str, Save]) -> None:
    for name, save in files.items():
        (folder / name).mkdir()
        save(pipe, folder / name / f"{name}.safetensors")


def as_diffusers_has_it(family: str, folder: Path, files: dict[str, Save]) -> Loaded:
    """Compare files on a tiny model; return the model that has loaded them."""
    model = save_family(family, folder / "model")
    pipe = loaded_by_diffusers(family, model)
    saved(pipe, folder, files)
    loaded = load(with_loras(settings_of(family, model), *settings_for([*files], folder)))
    put_by_diffusers(pipe, [*files], folder)

    def ours(loras: Any) -> Any:
        return draw_family(family, loaded, speed="lossless", loras=loras).media.array

    same([*files], ours, lambda pipe: drawn_by_diffusers(family, pipe), pipe)
    return loaded


@pytest.mark.verified
@pytest.mark.filterwarnings("default")
def test_a_lora_of_fals_kontext_trainer_draws_as_diffusers_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """diffusers 0.42.1 converts them at Flux's real size alone, which the test replaces by the embedded model's."""
    pipe: Any = diffusers.DiffusionPipeline.from_pretrained(EMBEDDED_FOLDER, dtype=torch.float32)
    files: dict[str, Save] = {"fal": save_fal_kontext, "other": write_lora}
    saved(pipe, tmp_path, files)
    transformer = pipe.transformer
    blocks = {19: len(transformer.transformer_blocks), 38: len(transformer.single_transformer_blocks)}
    settings = unwarmed(with_loras(UNCACHED, *settings_for([*files], tmp_path)))
    with pytest.raises(LoadError, match=r"^LoRA fal \(fal\.safetensors\): .* its format, fal Kontext, for a Flux"):
        load(settings)
    convert = lora_conversion_utils._convert_fal_kontext_lora_to_diffusers
    resize(monkeypatch, convert, {**blocks, WIDTH: transformer.inner_dim})
    loaded = load(settings)
    put_by_diffusers(pipe, [*files], tmp_path)

    def theirs(pipe: Any) -> Any:
        return embedded_by_diffusers(pipe, loaded, STEPS)

    same([*files], lambda loras: draw(loaded, num_inference_steps=STEPS, loras=loras).media.array, theirs, pipe)
    assert loaded.runner.loras()["fal"].format == "fal Kontext"


@pytest.mark.verified
@pytest.mark.filterwarnings("default")
def test_a_lora_of_fast_wan_draws_as_diffusers_has_it_and_what_it_skips_is_named(tmp_path: Path) -> None:
    loaded = as_diffusers_has_it("Wan", tmp_path, {"fast": save_fast_wan, "other": write_lora})
    contents = loaded.runner.loras()["fast"]
    assert contents.format == "lightx2v"
    assert str(contents.left_out) == (
        "diffusion_model.blocks.0.self_attn.norm_q.diff, diffusion_model.patch_embedding.diff_b"
    )


@pytest.mark.verified
@pytest.mark.filterwarnings("default")
def test_a_qwen_image_lora_of_each_naming_draws_as_diffusers_has_it(tmp_path: Path) -> None:
    contents = as_diffusers_has_it("QwenImage", tmp_path, dict.fromkeys(QWEN, save_qwen)).runner.loras()
    assert {name: each.format for name, each in contents.items()} == QWEN
    assert contents["lightning-8steps"].suggested_steps == 8
    assert not any(each.left_out for each in contents.values())


@pytest.mark.verified
@pytest.mark.filterwarnings("default")
def test_a_hunyuan_video_lora_in_its_original_naming_draws_as_diffusers_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    width = 20
    resize(monkeypatch, lora_conversion_utils._convert_hunyuan_video_lora_to_diffusers, {WIDTH: width})
    contents = as_diffusers_has_it("HunyuanVideo", tmp_path, dict.fromkeys(HUNYUAN, save_hunyuan)).runner.loras()
    assert {name: each.format for name, each in contents.items()} == HUNYUAN


@pytest.mark.parametrize(
    ("save", "words"),
    [
        (save_hunyuan_kohya, r"kohya"),
        (save_hunyuan_refiner, r"refiner"),
    ],
)
def test_a_hunyuan_video_lora_that_diffusers_converts_wrongly_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save: Save, words: str
) -> None:
    resize(monkeypatch, lora_conversion_utils._convert_hunyuan_video_lora_to_diffusers, {WIDTH: 20})
    model = save_family("HunyuanVideo", tmp_path / "model")
    saved(loaded_by_diffusers("HunyuanVideo", model), tmp_path, {"wrong": save})
    with pytest.raises(LoadError, match=rf"^LoRA wrong \(wrong\.safetensors\): .*{words}"):
        load(with_loras(settings_of("HunyuanVideo", model), *settings_for(["wrong"], tmp_path)))
