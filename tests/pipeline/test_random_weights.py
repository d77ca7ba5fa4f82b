"""Models whose weights are made up: from configurations alone, and served as any other."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cache_dit_serving.config.acceleration import QuantizeSettings
from cache_dit_serving.config.settings import ModelSettings, RequestDefaults, Settings
from cache_dit_serving.engine.model_info import model_info
from cache_dit_serving.errors import LoadError
from cache_dit_serving.pipeline.load import load_pipeline
from tests.support.families import save_family
from tests.support.in_process import draw, load

SUFFIXES = (".safetensors", ".bin")


def without_weights(family: str, folder: Path) -> Path:
    """A saved model with every file but those of weights."""
    save_family(family, folder)
    files = [file for file in folder.rglob("*") if file.suffix in SUFFIXES]
    assert files
    for file in files:
        file.unlink()
    return folder


def settings_of(folder: Path, **model: str) -> Settings:
    return Settings(model=ModelSettings.model_validate({"path": str(folder), "dtype": "float32", **model}))


@pytest.mark.parametrize("family", ["Flux", "QwenImage", "Wan", "StableAudio", "StableDiffusion3"])
def test_no_file_of_weights_is_read_and_each_load_makes_the_same(family: str, tmp_path: Path) -> None:
    folder = without_weights(family, tmp_path)
    with pytest.raises(LoadError):
        load_pipeline(settings_of(folder), print)
    first, second = (load_pipeline(settings_of(folder, weights="random"), print) for _ in range(2))
    for name, network in first.components.items():
        if isinstance(network, torch.nn.Module):
            again = second.components[name].state_dict()
            assert all(torch.equal(tensor, again[key]) for key, tensor in network.state_dict().items()), name
            assert not network.training


def test_they_have_the_models_dtype_but_where_the_class_keeps_float32(tmp_path: Path) -> None:
    save_family("Wan", tmp_path)
    saved = load_pipeline(settings_of(tmp_path, dtype="bfloat16"), print).transformer
    random = load_pipeline(settings_of(tmp_path, dtype="bfloat16", weights="random"), print).transformer
    dtypes = {name: parameter.dtype for name, parameter in saved.named_parameters()}
    assert {name: parameter.dtype for name, parameter in random.named_parameters()} == dtypes
    assert set(dtypes.values()) == {torch.float32, torch.bfloat16}


@pytest.mark.verified
def test_the_server_says_so(tmp_path: Path) -> None:
    small = settings_of(without_weights("Flux", tmp_path), weights="random")
    loaded = load(small.model_copy(update={"defaults": RequestDefaults(width=64, height=64)}))
    assert draw(loaded, num_inference_steps=2).media.array.shape == (64, 64, 3)
    assert model_info(loaded).weights == "random"


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        ({"model": {"weights": "random", "variant": "fp16"}}, "variant has no effect on random weights"),
        ({"model": {"weights": "random", "device_map": "balanced"}}, "device_map has no effect on random weights"),
    ],
)
def test_what_is_about_saved_weights_is_refused(tree: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Settings.model_validate(tree)


def test_quantisation_on_reading_is_refused(tmp_path: Path) -> None:
    settings = settings_of(without_weights("Flux", tmp_path), weights="random")
    quantize = QuantizeSettings(quant_type="bitsandbytes_4bit")
    with pytest.raises(LoadError, match="random ones are not read"):
        load_pipeline(settings.model_copy(update={"quantize": quantize}), print)
