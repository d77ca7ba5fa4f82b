"""Places of a model: files, bases and components, and their refusals without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cache_dit_serving import preflight
from cache_dit_serving.config.catalog import recognise
from cache_dit_serving.config.reading import load_settings, resolve
from cache_dit_serving.config.settings import LoraSettings, ModelSettings, Settings
from cache_dit_serving.config.sources import UnusableSource, sources_of
from cache_dit_serving.errors import ConfigError
from cache_dit_serving.pipeline.load import EMBEDDED_FOLDER
from tests.support.checkpoints import TRANSFORMER, VAE, as_comfyui, save, save_gguf, transformer_tensors

BASE = str(EMBEDDED_FOLDER)
T5 = EMBEDDED_FOLDER / "text_encoder_2" / "model.safetensors"
LORA = EMBEDDED_FOLDER.parent / "loras" / "monochrome.safetensors"
FP8 = torch.zeros(2, 2).to(torch.float8_e4m3fn)
SCALE = torch.ones(1)
WHOLE = {**as_comfyui(transformer_tensors()), "vae.encoder.conv_in.weight": SCALE}
LAYER = "transformer_blocks.0.attn.to_q"


def test_a_file_takes_its_other_components_from_its_base() -> None:
    sources = sources_of(ModelSettings(path=str(TRANSFORMER), base=BASE))
    assert sources.location == BASE
    assert sources.components["transformer"].name == TRANSFORMER.name


def test_a_transformer_alone_without_a_base_is_refused_with_the_base_that_fits(tmp_path: Path) -> None:
    file = save_gguf(transformer_tensors(), tmp_path / "flux1-schnell-Q8_0.gguf")
    with pytest.raises(UnusableSource) as failure:
        sources_of(ModelSettings(path=str(file)))
    assert str(failure.value) == (
        "model.path: flux1-schnell-Q8_0.gguf is a transformer alone (GGUF Q8_0): it has no text encoder, VAE, "
        "scheduler and tokenizer. Name a folder or hub id that has them as model.base, such as "
        "black-forest-labs/FLUX.1-schnell"
    )


def test_a_whole_file_without_a_base_takes_its_familys_configurations(tmp_path: Path) -> None:
    file = save(WHOLE, tmp_path / "flux.safetensors")
    assert sources_of(ModelSettings(path=str(file))).location == "black-forest-labs/FLUX.1-schnell"


def test_a_hub_id_that_cannot_be_read_is_refused_with_a_folder_as_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    file = save(WHOLE, tmp_path / "flux.safetensors")
    with pytest.raises(
        ConfigError, match=r"^model\.base: black-forest-labs/FLUX\.1-schnell .*; a folder with its config"
    ):
        preflight.check_sources(ModelSettings(path=str(file)))


def _file(tensors: dict[str, Any], name: str = "a.safetensors") -> Any:
    return lambda folder: str(save(tensors, folder / name))


def _pickle(folder: Path) -> str:
    (folder / "a.ckpt").write_bytes(b"\x80\x04")
    return str(folder / "a.ckpt")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_pickle, r"model\.path: a\.ckpt: .* is a pickle, .*; convert it with torch\.load"),
        (lambda _: str(LORA), r"model\.path: monochrome\.safetensors is a LoRA .*: give it in model\.loras"),
        (lambda _: str(VAE), r"is a VAE \(safetensors BF16\): give it in model\.components as vae"),
        (lambda _: str(T5), r"is a text encoder .*: give it in model\.components as text_encoder, text_encoder_2"),
        (_file({"embeddings.patch_embedding.weight": SCALE}), "is an image encoder .*: give it in model.components"),
        (_file({"control_model.a.weight": SCALE}), r"is a ControlNet .*: it is not served"),
        (_file({"else": SCALE}), "is an unknown file"),
        (
            _file({f"{LAYER}.qweight": SCALE, f"{LAYER}.wscales": FP8}),
            r"a\.safetensors: it is quantised as Nunchaku's SVDQuant: neither diffusers nor .*nunchaku_lite, .*; take",
        ),
        (
            _file({f"{LAYER}.weight": FP8, f"{LAYER}.comfy_quant": SCALE}),
            r"ComfyUI's mixed quantisation: diffusers does not load it, and without its scales",
        ),
        (
            _file(
                {
                    **WHOLE,
                    "text_encoders.t5xxl.transformer.a.weight": FP8.clone(),
                    "text_encoders.t5xxl.a.scale_weight": FP8,
                }
            ),
            r"its text encoder is in scaled FP8 .* take the transformer alone with model\.base",
        ),
    ],
    ids=[
        "pickle",
        "lora",
        "vae",
        "text encoder",
        "image encoder",
        "controlnet",
        "unknown",
        "svdquant",
        "comfy",
        "scaled t5",
    ],
)
def test_a_file_that_is_not_loaded_is_refused_with_its_name_its_format_and_the_way_out(
    tmp_path: Path, make: Any, words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as failure:
        preflight.check_sources(ModelSettings(path=make(tmp_path), base=BASE))
    assert str(tmp_path) not in str(failure.value)


@pytest.mark.parametrize(
    ("components", "words"),
    [
        ({"vae": str(TRANSFORMER)}, r"model\.components\.vae: .* is a transformer alone .*: that is no vae"),
        ({"transformer": str(VAE)}, "is a VAE .*: that is no transformer"),
        ({"text_encoder_2": str(VAE)}, r"model\.components\.text_encoder_2: .* is a VAE .*: that is no text_encoder_2"),
        ({"vae": str(T5)}, r"model\.components\.vae: .* is a text encoder .*: that is no vae"),
        ({"scheduler": str(VAE)}, "diffusers loads no scheduler from one file; name a folder"),
        ({"vae": "/nowhere/vae.safetensors"}, "it is neither a file or folder on the server nor a hub id"),
        ({"vae": str(EMBEDDED_FOLDER.parent)}, r"the folder embedded has no vae: no config\.json or"),
    ],
)
def test_a_component_that_cannot_be_loaded_is_refused_by_its_setting(components: dict[str, str], words: str) -> None:
    with pytest.raises(UnusableSource, match=words):
        sources_of(ModelSettings(components=components))


@pytest.mark.parametrize("target", ["gone.safetensors", "a.safetensors"], ids=["nothing", "itself"])
def test_a_link_without_a_target_is_refused_as_one(tmp_path: Path, target: str) -> None:
    link = tmp_path / "a.safetensors"
    link.symlink_to(tmp_path / target)
    lora = LoraSettings(name="red", path=str(link))
    for given in ({"path": str(link)}, {"components": {"vae": str(link)}}, {"loras": (lora,)}):
        with pytest.raises(ConfigError, match="is a link without a target on the server"):
            preflight.check(Settings(model=ModelSettings(**given)))


def test_a_base_beside_a_whole_model_is_refused() -> None:
    with pytest.raises(UnusableSource, match=r"^model\.base: it completes a transformer alone"):
        sources_of(ModelSettings(path=BASE, base="embedded"))


@pytest.mark.parametrize("key", [{"base": BASE}, {"components": {"vae": BASE}}])
def test_random_weights_take_no_files(key: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="has no effect on random weights"):
        ModelSettings(weights="random", **key)


def test_variables_name_a_base_and_single_components() -> None:
    settings = load_settings(
        {
            "CACHE_DIT_SERVING_CONFIG": "generic",
            "CACHE_DIT_SERVING__MODEL__PATH": str(TRANSFORMER),
            "CACHE_DIT_SERVING__MODEL__BASE": BASE,
            "CACHE_DIT_SERVING__MODEL__COMPONENTS__VAE": str(VAE),
        }
    )
    assert (settings.model.base, settings.model.components) == (BASE, {"vae": str(VAE)})


def test_a_files_configuration_is_its_bases_or_its_familys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = save_gguf(transformer_tensors(), tmp_path / "a.gguf")
    assert recognise(str(file), base="black-forest-labs/FLUX.1-dev").name == "flux"
    found = recognise(str(file))
    assert (found.name, found.why) == ("", "its transformer is far smaller than that of flux.1-schnell")
    variables = {"CACHE_DIT_SERVING__MODEL__PATH": str(file), "CACHE_DIT_SERVING__MODEL__BASE": "Qwen/Qwen-Image"}
    assert resolve(variables).name == "qwen-image"
    monkeypatch.setattr("cache_dit_serving.config.catalog.FAR_SMALLER", 1e9)
    assert recognise(str(file)).name == "flux.1-schnell"
