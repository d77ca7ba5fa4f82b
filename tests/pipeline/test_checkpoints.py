"""Checkpoints in each format: the picture is diffusers' own of the same file, and the cache engages."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import FluxPipeline, FluxTransformer2DModel, GGUFQuantizationConfig
from diffusers.loaders import single_file_utils
from diffusers.quantizers.gguf.utils import dequantize_gguf_tensor
from safetensors.torch import load_file

from cache_dit_serving.config.settings import LoraSettings, ModelSettings, Settings
from cache_dit_serving.engine.model_info import model_info
from cache_dit_serving.errors import LoadError
from cache_dit_serving.pipeline.load import EMBEDDED_FOLDER, load_pipeline
from cache_dit_serving.pipeline.protocol import Loaded
from cache_dit_serving.pipeline.scaled_fp8 import dequantized
from tests.support.alone import drawn_by_diffusers, loaded_by_diffusers
from tests.support.by_diffusers import embedded_by_diffusers
from tests.support.checkpoints import (
    GGUF_BLOCKS,
    TRANSFORMER,
    VAE,
    Tensors,
    as_comfyui,
    flux_in_original_naming,
    save,
    save_gguf,
    save_gguf_blocks,
    scaled_fp8,
    sd3_whole,
    transformer_tensors,
    wan_in_original_naming,
)
from tests.support.conformance import draw as draw_family
from tests.support.conformance import settings_of
from tests.support.families import save_family
from tests.support.in_process import EMBEDDED, draw, load, unwarmed

pytestmark = pytest.mark.slow

BASE = str(EMBEDDED_FOLDER)
MONOCHROME = "embedded/monochrome"
STEPS = 2
CACHED_STEPS = 14
FLUX_WIDTH = 3072
FORMATS = {
    "bf16.safetensors": ("safetensors BF16", "float32"),
    "fp8.safetensors": ("FP8 without scales", "float32"),
    "scaled.safetensors": ("scaled FP8", "float32"),
    "Q8_0.gguf": ("GGUF Q8_0", "Q8_0"),
    "Q4_0.gguf": ("GGUF Q4_0", "Q4_0"),
    "BF16.gguf": ("GGUF BF16", "BF16"),
    "F16.gguf": ("GGUF F16", "float32"),
}
"""Format and type in memory, by file."""
SAMPLE = {"fp8.safetensors", "scaled.safetensors", "Q8_0.gguf"}
"""Files of every run; the marker `verified` is on the others."""


def _with(**model: Any) -> Settings:
    return unwarmed(EMBEDDED.model_copy(update={"model": ModelSettings(dtype="float32", **model)}))


def _write(name: str, folder: Path) -> Path:
    tensors, kind = transformer_tensors(), name.partition(".")[0]
    if name.endswith(".gguf"):
        return save_gguf(tensors, folder / name, kind)
    return save({"fp8": _fp8, "scaled": scaled_fp8}.get(kind, dict)(tensors), folder / name)


def _fp8(tensors: Tensors) -> Tensors:
    return {name: each.to(torch.float8_e4m3fn) if each.ndim == 2 else each for name, each in tensors.items()}


def _loaded_by_diffusers(file: Path) -> Any:
    """The embedded model with the transformer of a file, as diffusers' documentation loads it."""
    given: dict[str, Any] = {"config": BASE, "subfolder": "transformer", "dtype": torch.float32}
    if file.suffix == ".gguf":
        given["quantization_config"] = GGUFQuantizationConfig(compute_dtype=torch.float32)
    weights = dequantized(load_file(file), torch.float32) if file.stem == "scaled" else str(file)
    transformer = FluxTransformer2DModel.from_single_file(weights, **given)
    return FluxPipeline.from_pretrained(BASE, transformer=transformer, dtype=torch.float32)


def _drawn_by_diffusers(pipe: Any, loaded: Loaded) -> np.ndarray[Any, Any]:
    pipe.set_progress_bar_config(disable=True)
    return embedded_by_diffusers(pipe, loaded, STEPS)


def _picture(loaded: Loaded, **fields: Any) -> np.ndarray[Any, Any]:
    return draw(loaded, num_inference_steps=STEPS, speed="lossless", **fields).media.array


def _components(loaded: Loaded) -> dict[str, tuple[str, str, str]]:
    return {each.name: (each.file, each.format, each.dtype) for each in model_info(loaded).components}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in SAMPLE else pytest.mark.verified) for name in FORMATS]
)
def test_a_transformer_alone_draws_as_diffusers_does_and_the_cache_engages(tmp_path: Path, name: str) -> None:
    file = _write(name, tmp_path)
    loaded = load(_with(path=str(file), base=BASE))
    assert np.array_equal(_picture(loaded), _drawn_by_diffusers(_loaded_by_diffusers(file), loaded))
    report = draw(loaded, num_inference_steps=CACHED_STEPS).record.cache
    assert report.engaged
    assert report.cached_steps > 0
    told = _components(loaded)
    assert told["transformer"] == (name, *FORMATS[name])
    assert told["vae"] == ("emoji-flux", "folder", "float32")
    assert model_info(loaded).model == name


def test_scaled_fp8_is_near_the_weights_it_was_made_from() -> None:
    """Without its scales it would be far off."""
    tensors = transformer_tensors()
    found = dequantized(scaled_fp8(tensors), torch.bfloat16)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == torch.bfloat16
        far = (found[name].float() - tensor.float()).abs().max() / tensor.float().abs().max().clamp(min=1e-6)
        assert far < 0.05, name


@pytest.mark.parametrize("kind", GGUF_BLOCKS)
def test_each_quantised_type_of_gguf_is_dequantised_as_the_gguf_package_does(tmp_path: Path, kind: str) -> None:
    """diffusers computes in the scales' type, which is float16."""
    file, expected = save_gguf_blocks(transformer_tensors(), tmp_path / f"flux-{kind}.gguf", kind)
    pipe: Any = load_pipeline(_with(path=str(file), base=BASE), print)
    found = dict(pipe.transformer.named_parameters())
    assert expected
    for name, values in expected.items():
        assert found[name].quant_type.name == kind
        far = (dequantize_gguf_tensor(found[name]).float() - values).abs().max()
        assert far < torch.finfo(torch.float16).eps * values.abs().max(), name
    picture = pipe("a", num_inference_steps=1, width=64, height=64, output_type="np").images[0]
    assert np.isfinite(picture).all()


@pytest.mark.parametrize("prefixed", [False, True], ids=["plain", "ComfyUI"])
@pytest.mark.parametrize("suffix", [".safetensors", ".gguf"])
def test_flux_in_its_original_naming_has_the_weights_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, *, prefixed: bool
) -> None:
    """diffusers 0.42.1 converts Flux at its real width alone, which the test replaces by the embedded model's."""
    ours = transformer_tensors()
    original = flux_in_original_naming(ours)
    original = as_comfyui(original) if prefixed else original
    file = tmp_path / f"flux{suffix}"
    save(original, file) if suffix == ".safetensors" else save_gguf(original, file, "F32")
    settings = _with(path=str(file), base=BASE)
    with pytest.raises(LoadError, match=rf"^model\.path: flux\{suffix} does not fit the transformer of emoji-flux"):
        load_pipeline(settings, print)
    convert = single_file_utils.convert_flux_transformer_checkpoint_to_diffusers
    width = ours["x_embedder.weight"].shape[0]
    constants = tuple(width if each == FLUX_WIDTH else each for each in convert.__code__.co_consts)
    monkeypatch.setattr(convert, "__code__", convert.__code__.replace(co_consts=constants))
    pipe: Any = load_pipeline(settings, print)
    found = pipe.transformer.state_dict()
    assert found.keys() == ours.keys()
    assert all(torch.equal(found[name], ours[name].float()) for name in ours)


@pytest.mark.parametrize("suffix", [".safetensors", ".gguf"])
def test_a_transformer_in_its_original_naming_draws_as_the_folder_it_is_from(tmp_path: Path, suffix: str) -> None:
    folder = save_family("Wan", tmp_path / "wan")
    tensors = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    original = as_comfyui(wan_in_original_naming(tensors))
    file = tmp_path / f"wan{suffix}"
    save(original, file) if suffix == ".safetensors" else save_gguf(original, file, "F16", "wan")
    settings = settings_of("Wan", folder)
    model = ModelSettings(path=str(file), base=str(folder), dtype="float32")
    loaded = load(settings.model_copy(update={"model": model}))
    drawn = draw_family("Wan", loaded, speed="lossless").media.array
    transformer = diffusers.WanTransformer3DModel.from_single_file(
        str(file), config=str(folder), subfolder="transformer", dtype=torch.float32
    )
    pipe = loaded_by_diffusers("Wan", folder, transformer=transformer)
    assert np.array_equal(drawn, drawn_by_diffusers("Wan", pipe))
    if suffix == ".safetensors":
        assert np.array_equal(drawn, drawn_by_diffusers("Wan", loaded_by_diffusers("Wan", folder)))


@pytest.mark.parametrize(
    "scaled", [pytest.param(False, marks=pytest.mark.verified), True], ids=["float32", "scaled FP8"]
)
def test_a_whole_pipeline_in_one_file_draws_as_diffusers_does(tmp_path: Path, scaled: bool) -> None:
    folder = save_family("StableDiffusion3", tmp_path / "sd3")
    tensors = sd3_whole(folder)
    if scaled:
        matrices = {name: each for name, each in tensors.items() if name.startswith("model.") and ".mlp.fc" in name}
        scaled_ones = scaled_fp8(matrices)
        tensors |= {
            f"model.diffusion_model.{name}" if name == "scaled_fp8" else name: each
            for name, each in scaled_ones.items()
        }
    file = save(tensors, tmp_path / "sd3.safetensors")
    settings = settings_of("StableDiffusion3", folder)
    model = ModelSettings(path=str(file), base=str(folder), dtype="float32")
    loaded = load(settings.model_copy(update={"model": model}))
    told = _components(loaded)
    assert told["transformer"][:2] == told["vae"][:2] == (file.name, "scaled FP8" if scaled else "safetensors F32")
    assert told["text_encoder"][:2] == ("sd3", "folder")
    drawn = draw_family("StableDiffusion3", loaded, speed="lossless").media.array
    whole = save(dequantized(tensors, torch.float32), tmp_path / "plain.safetensors")
    encoders = {
        name: each
        for name, each in loaded_by_diffusers("StableDiffusion3", folder).components.items()
        if name.startswith("text_encoder")
    }
    pipe = diffusers.StableDiffusion3Pipeline.from_single_file(
        str(whole), config=str(folder), dtype=torch.float32, **encoders
    )
    pipe.set_progress_bar_config(disable=True)
    assert np.array_equal(drawn, drawn_by_diffusers("StableDiffusion3", pipe))
    assert draw_family("StableDiffusion3", loaded).record.cache.cached_steps > 0


def _tiny_vae(folder: Path) -> Path:
    """A VAE of another class than the model's."""
    torch.manual_seed(0)
    vae = diffusers.AutoencoderTiny(
        latent_channels=16, encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4
    )
    vae.save_pretrained(folder)
    return folder


def test_components_come_from_folders_and_files_of_their_own(tmp_path: Path) -> None:
    gguf = _write("Q8_0.gguf", tmp_path)
    shutil.copytree(EMBEDDED_FOLDER / "text_encoder_2", tmp_path / "t5")
    components = {
        "transformer": str(gguf),
        "vae": str(_tiny_vae(tmp_path / "taef1")),
        "text_encoder_2": str(tmp_path / "t5"),
        "scheduler": BASE,
    }
    loaded = load(_with(path="embedded", components=components))
    pipe = _loaded_by_diffusers(gguf)
    pipe.vae = diffusers.AutoencoderTiny.from_pretrained(tmp_path / "taef1")
    assert np.array_equal(_picture(loaded), _drawn_by_diffusers(pipe, loaded))
    told = _components(loaded)
    assert told["transformer"] == ("Q8_0.gguf", "GGUF Q8_0", "Q8_0")
    assert told["vae"][:2] == ("taef1", "folder")
    assert told["text_encoder_2"][:2] == ("t5", "folder")
    assert told["text_encoder"][:2] == ("embedded", "folder")


def test_a_vae_in_one_file_replaces_the_models(tmp_path: Path) -> None:
    tensors = {name: each * 1.1 if name == "decoder.conv_out.weight" else each for name, each in load_file(VAE).items()}
    pipe: Any = load_pipeline(
        _with(path="embedded", components={"vae": str(save(tensors, tmp_path / "v.safetensors"))}), print
    )
    assert torch.equal(pipe.vae.decoder.conv_out.weight, tensors["decoder.conv_out.weight"].float())


def test_a_transformers_folder_alone_is_completed_by_its_base(tmp_path: Path) -> None:
    shutil.copytree(EMBEDDED_FOLDER / "transformer", tmp_path / "mine")
    with pytest.raises(
        LoadError, match=r"mine is a FluxTransformer2DModel alone: it has no text encoder.* model\.base"
    ):
        load_pipeline(_with(path=str(tmp_path / "mine")), print)
    pipe: Any = load_pipeline(_with(path=str(tmp_path / "mine"), base="embedded"), print)
    assert type(pipe) is FluxPipeline


@pytest.mark.verified
def test_a_lora_lies_on_gguf_weights_as_diffusers_has_it_and_is_not_fused_into_them(tmp_path: Path) -> None:
    file = _write("Q8_0.gguf", tmp_path)
    lora = LoraSettings(name="mono", path=MONOCHROME, scale=0.0)
    loaded = load(_with(path=str(file), base=BASE, loras=(lora,)))
    pipe = _loaded_by_diffusers(file)
    plain = _picture(loaded)
    drawn = _picture(loaded, loras=[{"name": "mono", "scale": 1.0}])
    pipe.load_lora_weights(str(EMBEDDED_FOLDER.parent / "loras" / "monochrome.safetensors"))
    assert np.array_equal(drawn, _drawn_by_diffusers(pipe, loaded))
    assert not np.array_equal(drawn, plain)
    with pytest.raises(LoadError, match="LoRA mono: it cannot be fused into quantised weights; leave fuse out"):
        load(_with(path=str(file), base=BASE, loras=(lora.model_copy(update={"fuse": True, "scale": 1.0}),)))


def _without(name: str, tensors: Tensors) -> Tensors:
    return {each: tensor for each, tensor in tensors.items() if each != name}


def test_a_file_that_lacks_weights_is_refused_by_their_names(tmp_path: Path) -> None:
    cut = save(
        _without("single_transformer_blocks.3.proj_out.weight", transformer_tensors()), tmp_path / "a.safetensors"
    )
    with pytest.raises(LoadError, match=r"^model\.path: a\.safetensors .*(lacks 1 weights|does not fit)") as failure:
        load_pipeline(_with(path=str(cut), base=BASE), print)
    assert str(tmp_path) not in str(failure.value)


@pytest.mark.parametrize("component", ["text_encoder_2", "vae"])
def test_a_components_folder_that_lacks_weights_is_refused_by_their_names(tmp_path: Path, component: str) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(EMBEDDED_FOLDER / component, folder)
    [file] = folder.glob("*.safetensors")
    lacking = min(name for name in load_file(file) if name.endswith(".weight"))
    save(_without(lacking, load_file(file)), file)
    words = rf"^model\.components\.{component}: mine lacks 1 weights of the {component}, such as {lacking}"
    with pytest.raises(LoadError, match=words):
        load_pipeline(_with(path="embedded", components={component: str(folder)}), print)


def test_a_file_for_another_model_is_refused_with_the_way_out(tmp_path: Path) -> None:
    tensors = transformer_tensors()
    tensors["x_embedder.weight"] = torch.zeros(256, 64)
    file = save(tensors, tmp_path / "a.safetensors")
    with pytest.raises(
        LoadError, match=r"a\.safetensors does not fit the transformer of emoji-flux; take the model\.base"
    ):
        load_pipeline(_with(path=str(file), base=BASE), print)


def _folder_quantised(folder: Path, config: dict[str, Any]) -> Path:
    shutil.copytree(EMBEDDED_FOLDER, folder)
    file = folder / "transformer" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": config}), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True},
            "needs the package bitsandbytes, which is not installed",
        ),
        ({"quant_method": "auto-round", "bits": 4}, "needs the package auto-round"),
        (
            {
                "quant_method": "nunchaku_lite",
                "compute_dtype": "bfloat16",
                "svdq_w4a4": {
                    "precision": "int4",
                    "group_size": 64,
                    "rank": 32,
                    "targets": ["transformer_blocks.0.attn.to_q"],
                },
            },
            "needs the package kernels, which is not installed",
        ),
        (
            {"quant_method": "awq", "bits": 4},
            "transformer is quantised by awq.*: diffusers does not load it.*model.components",
        ),
        ({"quant_method": "exl2"}, "transformer is quantised by exl2, which is not supported"),
    ],
)
def test_a_folder_quantised_by_what_does_not_run_here_is_refused_by_its_name(
    tmp_path: Path, config: dict[str, Any], words: str
) -> None:
    folder = _folder_quantised(tmp_path / "model", config)
    with pytest.raises(LoadError, match=words):
        load_pipeline(_with(path=str(folder)), print)


@pytest.mark.verified
def test_a_folder_saved_in_torchaos_int8_draws_as_diffusers_loads_it(tmp_path: Path) -> None:
    from diffusers import TorchAoConfig
    from torchao.quantization import Int8WeightOnlyConfig

    folder = tmp_path / "model"
    shutil.copytree(EMBEDDED_FOLDER, folder)
    shutil.rmtree(folder / "transformer")
    quantised = FluxTransformer2DModel.from_pretrained(
        BASE, subfolder="transformer", dtype=torch.float32, quantization_config=TorchAoConfig(Int8WeightOnlyConfig())
    )
    quantised.save_pretrained(folder / "transformer")
    loaded = load(_with(path=str(folder)))
    assert [each.type for each in model_info(loaded).quantization or []] == ["torchao"]
    pipe: Any = FluxPipeline.from_pretrained(folder, dtype=torch.float32)
    assert np.array_equal(_picture(loaded), _drawn_by_diffusers(pipe, loaded))
    assert draw(loaded, num_inference_steps=CACHED_STEPS).record.cache.cached_steps > 0


def test_a_class_that_diffusers_loads_from_no_file_is_refused_by_name(tmp_path: Path) -> None:
    folder = save_family("PixArtSigma", tmp_path / "pixart")
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    with pytest.raises(
        LoadError, match="diffusers loads no PixArtTransformer2DModel from one file such as diffusion_py"
    ):
        load_pipeline(_with(path=str(file), base=str(folder)), print)


def test_a_component_that_the_pipeline_has_not_is_refused_with_those_it_has() -> None:
    settings = _with(path="embedded", components={"transformer_2": str(TRANSFORMER)})
    with pytest.raises(
        LoadError, match=r"^model\.components\.transformer_2: FluxPipeline has no component transformer_2"
    ):
        load_pipeline(settings, print)
