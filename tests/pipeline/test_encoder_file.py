"""Text and image encoders in one file: the weights, and the picture, are those of the folder that they are from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cache_dit_serving.config.settings import ModelSettings, Settings
from cache_dit_serving.engine.model_info import model_info
from cache_dit_serving.errors import LoadError
from cache_dit_serving.pipeline.load import EMBEDDED_FOLDER, load_pipeline
from cache_dit_serving.pipeline.scaled_fp8 import dequantized
from tests.support.checkpoints import Tensors, save, save_gguf_encoder, scaled_fp8
from tests.support.families import save_family
from tests.support.in_process import EMBEDDED, draw, load, unwarmed

pytestmark = pytest.mark.slow

CLIP = EMBEDDED_FOLDER / "text_encoder" / "model.safetensors"
T5 = EMBEDDED_FOLDER / "text_encoder_2" / "model.safetensors"


def _with(**components: Path) -> Settings:
    files = {name: str(file) for name, file in components.items()}
    return unwarmed(EMBEDDED.model_copy(update={"model": ModelSettings(dtype="float32", components=files)}))


def _loaded(settings: Settings, name: str) -> Tensors:
    pipe: Any = load_pipeline(settings, lambda what: None)
    found: Tensors = getattr(pipe, name).state_dict()
    return found


def _same(found: Tensors, expected: Tensors) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


def _as_comfyuis_clip(tensors: Tensors) -> Tensors:
    """CLIP's tensors as clip_l.safetensors has them, whose class wraps the model and has a head."""
    named = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in tensors.items()}
    return named | {"logit_scale": torch.ones(()), "text_projection.weight": torch.ones(96, 96)}


def test_text_encoders_in_one_file_draw_as_the_folders_that_they_are_from(tmp_path: Path) -> None:
    clip = save(_as_comfyuis_clip(load_file(CLIP)), tmp_path / "clip_l.safetensors")
    t5 = save(load_file(T5), tmp_path / "t5xxl_fp16.safetensors")
    loaded = load(_with(text_encoder=clip, text_encoder_2=t5))
    told = {each.name: (each.file, each.format) for each in model_info(loaded).components}
    assert told["text_encoder"] == ("clip_l.safetensors", "safetensors BF16")
    assert told["text_encoder_2"] == ("t5xxl_fp16.safetensors", "safetensors BF16")
    picture, expected = (draw(each, num_inference_steps=2).media.array for each in (loaded, load(_with())))
    assert np.array_equal(picture, expected)


def _plain(tensors: Tensors) -> Tensors:
    return tensors


def _fp8(tensors: Tensors) -> Tensors:
    return {name: each.to(torch.float8_e4m3fn) for name, each in tensors.items()}


def _with_both_ends_of_the_tie(tensors: Tensors) -> Tensors:
    return tensors | {"encoder.embed_tokens.weight": tensors["shared.weight"].clone()}


def _with_a_tokenizer(tensors: Tensors) -> Tensors:
    """As in ComfyUI's umt5_xxl, which has its tokenizer's file as a tensor."""
    return tensors | {"spiece_model": torch.zeros(10, dtype=torch.uint8)}


def _prefixed(tensors: Tensors) -> Tensors:
    return {f"text_encoders.t5xxl.transformer.{name}": each for name, each in tensors.items()}


@pytest.mark.parametrize(
    "written", [_plain, _fp8, scaled_fp8, _with_both_ends_of_the_tie, _with_a_tokenizer, _prefixed]
)
def test_a_text_encoder_has_the_weights_of_its_file(tmp_path: Path, written: Callable[[Tensors], Tensors]) -> None:
    tensors = written(load_file(T5))
    file = save(tensors, tmp_path / "t5.safetensors")
    found = _loaded(_with(text_encoder_2=file), "text_encoder_2")
    plain = {
        name.removeprefix("text_encoders.t5xxl.transformer."): each.float()
        for name, each in dequantized(tensors, torch.float32).items()
    }
    assert found["encoder.embed_tokens.weight"].equal(plain["shared.weight"])
    plain.setdefault("encoder.embed_tokens.weight", plain["shared.weight"])
    plain.pop("spiece_model", None)
    assert _same(found, plain)


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_0"])
def test_a_text_encoder_in_gguf_is_dequantised(tmp_path: Path, kind: str) -> None:
    file, expected = save_gguf_encoder(load_file(T5), tmp_path / f"t5-{kind}.gguf", kind)
    found = _loaded(_with(text_encoder_2=file), "text_encoder_2")
    assert _same(found, expected | {"encoder.embed_tokens.weight": expected["shared.weight"]})


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("QwenImage", "text_encoder"),
        ("ZImage", "text_encoder"),
        ("StableDiffusion3", "text_encoder"),
        ("LTX2", "text_encoder"),
        ("WanImageToVideo", "image_encoder"),
        ("HunyuanVideoFramepack", "image_encoder"),
    ],
)
def test_an_encoder_of_another_family_has_the_weights_of_its_folder(tmp_path: Path, family: str, name: str) -> None:
    folder = save_family(family, tmp_path / "model")
    tensors = load_file(folder / name / "model.safetensors")
    as_comfyui = {
        name.replace("model.language_model.", "model.").replace("model.visual.", "visual."): each
        for name, each in tensors.items()
    }
    file = save(as_comfyui, tmp_path / "encoder.safetensors")
    model = ModelSettings(path=str(folder), dtype="float32")
    mixed = model.model_copy(update={"components": {name: str(file)}})
    assert _same(*(_loaded(Settings(model=each), name) for each in (mixed, model)))


def test_a_file_that_is_no_encoder_of_the_model_is_refused_by_its_name(tmp_path: Path) -> None:
    lacking = {name: each for name, each in load_file(T5).items() if name != "encoder.final_layer_norm.weight"}
    wide = load_file(T5) | {"shared.weight": torch.zeros(152, 128)}
    both = _prefixed(load_file(T5)) | {"text_encoders.clip_l.transformer.a.weight": torch.zeros(1)}
    for tensors, words in (
        (lacking, r"t5\.safetensors lacks 1 weights of the text_encoder_2, such as encoder\.final_layer_norm"),
        (wide, r"t5\.safetensors does not fit the text_encoder_2 of emoji-flux"),
        (both, r"t5\.safetensors does not fit the text_encoder_2 of emoji-flux"),
    ):
        file = save(tensors, tmp_path / "t5.safetensors")
        with pytest.raises(LoadError, match=rf"^model\.components\.text_encoder_2: {words}") as failure:
            load_pipeline(_with(text_encoder_2=file), print)
        assert str(tmp_path) not in str(failure.value)
