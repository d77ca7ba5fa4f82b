"""Checkpoint files by their headers: container, kind, quantisation, and damage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cache_dit_serving.checkpoints.checkpoint_file import CheckpointFile, Kind
from cache_dit_serving.checkpoints.schemes import Scheme
from cache_dit_serving.loras.lora_file import read_lora_file
from cache_dit_serving.pipeline.load import EMBEDDED_FOLDER
from cache_dit_serving.safetensors_header import UnreadableFile
from tests.support.checkpoints import TRANSFORMER, VAE, Tensors, save, save_gguf, scaled_fp8, transformer_tensors

FLUX = "FluxTransformer2DModel"


def _layer(**tensors: torch.Tensor) -> Tensors:
    return {"transformer_blocks.0.attn.to_q." + name: tensor for name, tensor in tensors.items()}


def test_a_transformer_is_read_with_its_types_and_size() -> None:
    file = CheckpointFile.read(TRANSFORMER)
    tensors = transformer_tensors()
    assert (file.kind, file.scheme, file.refusal) == (Kind.DENOISER, None, None)
    assert file.family is not None
    assert (file.family.denoiser, file.family.hub_id) == (FLUX, "black-forest-labs/FLUX.1-schnell")
    assert file.size_bytes == sum(tensor.nbytes for tensor in tensors.values())
    assert file.parameters == sum(tensor.numel() for tensor in tensors.values())
    assert file.format == "safetensors BF16"


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        (VAE, Kind.VAE),
        (EMBEDDED_FOLDER / "text_encoder" / "model.safetensors", Kind.TEXT_ENCODER),
        (EMBEDDED_FOLDER / "text_encoder_2" / "model.safetensors", Kind.TEXT_ENCODER),
        (EMBEDDED_FOLDER.parent / "loras" / "monochrome.safetensors", Kind.LORA),
    ],
    ids=["vae", "clip", "t5", "lora"],
)
def test_other_components_are_told_from_transformers(file: Path, kind: Kind) -> None:
    assert CheckpointFile.read(file).kind is kind


def test_a_file_with_a_denoiser_and_other_parts_is_a_whole_pipeline(tmp_path: Path) -> None:
    parts = {f"model.diffusion_model.{name}": tensor for name, tensor in transformer_tensors().items()}
    parts |= {f"vae.{name}": tensor for name, tensor in load_file(VAE).items()}
    file = CheckpointFile.read(save(parts, tmp_path / "whole.safetensors"))
    assert file.kind is Kind.PIPELINE
    assert file.family is not None
    assert file.family.denoiser == FLUX


def test_gguf_is_read_with_torchs_order_of_sides(tmp_path: Path) -> None:
    file = CheckpointFile.read(save_gguf(transformer_tensors(), tmp_path / "a.gguf"))
    assert (file.kind, file.scheme, file.format, file.refusal) == (Kind.DENOISER, Scheme.GGUF, "GGUF Q8_0", None)
    assert {name: entry.shape for name, entry in file.tensors.items()} == {
        name: tuple(tensor.shape) for name, tensor in transformer_tensors().items()
    }


def test_gguf_types_that_diffusers_does_not_dequantise_are_refused(tmp_path: Path) -> None:
    wide = {"transformer_blocks.0.attn.to_q.weight": torch.randn(4, 256)}
    refusal = CheckpointFile.read(save_gguf(wide, tmp_path / "b.gguf", "TQ1_0")).refusal
    assert refusal == "its GGUF types TQ1_0 are unknown to diffusers; take a K-quant, such as Q4_K"


FP8 = torch.zeros(2, 2).to(torch.float8_e4m3fn)
BYTES = torch.zeros(2, 2, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("tensors", "scheme", "loaded"),
    [
        (_layer(weight=FP8), Scheme.FP8, True),
        (_layer(weight=FP8, scale_weight=torch.ones(1)), Scheme.SCALED_FP8, True),
        ({**_layer(weight=FP8), "scaled_fp8": FP8.clone()}, Scheme.SCALED_FP8, True),
        (_layer(weight=FP8, weight_scale=torch.ones(1)), Scheme.COMFY, False),
        (_layer(weight=FP8, comfy_quant=BYTES), Scheme.COMFY, False),
        (_layer(qweight=BYTES, wscales=torch.ones(1), smooth_factor=torch.ones(1)), Scheme.NUNCHAKU, False),
        (_layer(smooth_orig=torch.ones(1), wzeros=torch.ones(1)), Scheme.NUNCHAKU, False),
        (_layer(weight=BYTES, **{"weight.absmax": torch.ones(1)}), Scheme.BITSANDBYTES, False),
        (_layer(weight=BYTES, weight_scale=torch.ones(1), weight_scale_2=torch.ones(1)), Scheme.NVFP4, False),
        (_layer(weight=BYTES.to(torch.int8)), Scheme.INT8, False),
        (_layer(weight=torch.ones(2, 2)), None, True),
    ],
)
def test_quantisation_is_told_by_names_and_types(
    tmp_path: Path, tensors: Tensors, scheme: Scheme | None, loaded: bool
) -> None:
    file = CheckpointFile.read(save(tensors, tmp_path / "a.safetensors"))
    assert file.scheme is scheme
    assert (file.refusal is None) is loaded
    if not loaded:
        assert str(scheme) in str(file.refusal)


def test_scaled_fp8_of_a_whole_transformer_keeps_its_family(tmp_path: Path) -> None:
    file = CheckpointFile.read(save(scaled_fp8(transformer_tensors()), tmp_path / "a.safetensors"))
    assert (file.kind, file.scheme, file.format) == (Kind.DENOISER, Scheme.SCALED_FP8, "scaled FP8")


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1000])


def _pointer(file: Path) -> None:
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")


def _web_page(file: Path) -> None:
    file.write_bytes(b"<!DOCTYPE html><html><body>Sign in</body></html>")


@pytest.mark.parametrize("damage", [_cut, _pointer, _web_page], ids=["cut", "pointer", "web page"])
@pytest.mark.parametrize("suffix", [".gguf", ".safetensors"])
def test_damaged_files_are_refused_with_the_way_out(
    tmp_path: Path, suffix: str, damage: Callable[[Path], None]
) -> None:
    file = tmp_path / f"a{suffix}"
    save_gguf(transformer_tensors(), file) if suffix == ".gguf" else save(transformer_tensors(), file)
    damage(file)
    with pytest.raises(UnreadableFile, match="download it"):
        CheckpointFile.read(file)


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt"])
def test_pickles_are_refused_with_the_way_to_convert_them(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a{suffix}").write_bytes(b"\x80\x04")
    with pytest.raises(UnreadableFile, match=r"is a pickle.*convert it with torch\.load\(\.\.\., weights_only=True\)"):
        CheckpointFile.read(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("name", ["flux1-dev.sft", "a.SAFETENSORS"])
def test_a_safetensors_file_of_another_name_is_refused_with_the_remedy(tmp_path: Path, name: str) -> None:
    save({"a": torch.ones(1)}, tmp_path / name)
    for read in (CheckpointFile.read, read_lora_file):
        with pytest.raises(UnreadableFile, match=r"files are loaded, not .*; rename it to end in .safetensors"):
            read(tmp_path / name)


def test_a_file_of_unknown_contents_is_reported_by_its_names(tmp_path: Path) -> None:
    file = CheckpointFile.read(save({"something.else": torch.ones(1)}, tmp_path / "a.safetensors"))
    assert (file.kind, file.family) == (Kind.UNKNOWN, None)
    assert file.described() == "unknown file, safetensors F32 (something.else ...)"
