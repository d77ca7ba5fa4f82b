"""A LoRA's file by its header: format, ranks and suggestions; and what is refused before torch or a model is loaded."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from cache_dit_serving import preflight
from cache_dit_serving.config.settings import LoraSettings, ModelSettings, Settings
from cache_dit_serving.errors import ConfigError
from cache_dit_serving.loras.adapter_config import UnsupportedAdapter, applied
from cache_dit_serving.loras.formats import LoraFormat, format_of
from cache_dit_serving.loras.lora_file import Sampling, read_lora_file
from cache_dit_serving.safetensors_header import MAX_HEADER_BYTES, UnreadableFile, read_header


def save(file: Path, names: dict[str, tuple[int, ...]], metadata: dict[str, str] | None = None) -> Path:
    save_file({name: np.ones(shape, np.float32) for name, shape in names.items()}, file, metadata)
    return file


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("transformer.blocks.0.attn.to_q.lora_A.weight", LoraFormat.DIFFUSERS),
        ("transformer.blocks.0.attn.to_q.lora.down.weight", LoraFormat.DIFFUSERS),
        ("base_model.model.blocks.0.attn.to_q.lora_A.weight", LoraFormat.PEFT),
        ("base_model.model.double_blocks.0.img_attn.qkv.lora_A.weight", LoraFormat.FAL_KONTEXT),
        ("lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight", LoraFormat.KOHYA),
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", LoraFormat.KOHYA),
        ("lora_unet_blocks_0_self_attn_q.lora_down.weight", LoraFormat.MUSUBI),
        ("diffusion_model.blocks.0.self_attn.q.lora_A.weight", LoraFormat.AI_TOOLKIT),
        ("diffusion_model.blocks.0.self_attn.q.diff_b", LoraFormat.LIGHTX2V),
        ("double_blocks.0.processor.qkv_lora1.down.weight", LoraFormat.XLABS),
        ("double_blocks.0.img_attn.norm.query_norm.scale", LoraFormat.BFL_CONTROL),
        ("lycoris_transformer_blocks_0_attn_to_q.lokr_w1", LoraFormat.LOKR),
        ("lora_unet_blocks_0.hada_w1_a", LoraFormat.LOHA),
        ("lora_unet_blocks_0.dora_scale", LoraFormat.KOHYA_DORA),
        ("transformer.blocks.0.attn.to_q.weight", None),
    ],
)
def test_a_format_shows_by_the_names(name: str, expected: LoraFormat | None) -> None:
    assert format_of([name]) is expected


def test_a_header_tells_parts_ranks_and_alpha(tmp_path: Path) -> None:
    names: dict[str, tuple[int, ...]] = {}
    for layer, rank in (("lora_unet_double_blocks_0_img_attn_proj", 4), ("lora_te1_text_model_encoder_0_fc1", 2)):
        names |= {f"{layer}.lora_down.weight": (rank, 8), f"{layer}.lora_up.weight": (8, rank), f"{layer}.alpha": ()}
    metadata = {"ss_network_alpha": "16.0", "ss_trigger_words": "in red chalk"}
    found = read_lora_file(save(tmp_path / "a.safetensors", names, metadata))
    assert found.parts == {"transformer": 1, "text_encoder": 1}
    assert (found.ranks, found.alpha, found.trigger_words) == ((2, 4), 16.0, "in red chalk")
    assert found.header.size_bytes == 4 * (2 * 4 * 8 + 2 * 2 * 8 + 2)


@pytest.mark.parametrize(
    ("stem", "metadata", "expected"),
    [
        ("Qwen-Image-Lightning-8steps-V1.0", {}, Sampling(8, None)),
        ("wan2.2_i2v_4step_shift5", {}, Sampling(4, 5.0)),
        ("Hyper-FLUX.1-dev-16steps-lora", {}, Sampling(16, None)),
        ("mine-2000steps", {}, Sampling(None, None)),
        ("mine-step00001500", {}, Sampling(None, None)),
        ("mine", {"modelspec.num_inference_steps": "6", "modelspec.shift": "3.5"}, Sampling(6, 3.5)),
        ("mine-8steps", {"num_inference_steps": "many"}, Sampling(8, None)),
    ],
)
def test_trained_steps_are_read_from_the_metadata_or_the_name(
    stem: str, metadata: dict[str, str], expected: Sampling, tmp_path: Path
) -> None:
    pair: dict[str, tuple[int, ...]] = {"transformer.a.lora_A.weight": (2, 4), "transformer.a.lora_B.weight": (4, 2)}
    assert read_lora_file(save(tmp_path / f"{stem}.safetensors", pair, metadata)).sampling == expected


def with_header(text: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(text)) + text + data


ENTRY = b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}'
TWICE = ENTRY[:-1] + b', "b": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}'


@pytest.mark.parametrize(
    ("contents", "words"),
    [
        (b"", "it begins with no header's length"),
        (struct.pack("<Q", MAX_HEADER_BYTES + 1) + b" " * 40, "it begins with no header's length"),
        (struct.pack("<Q", 1000) + b"{}", "it ends within its header; download it again"),
        (with_header(b"[1]"), "its header is no JSON object"),
        (with_header(b"[" * 100_000), "its header is no JSON object"),
        (with_header(b'{"__metadata__": {"a": 1}}'), "its metadata is no JSON object of strings"),
        (with_header(ENTRY.replace(b'"a"', b'"a\\nERROR b"'), b"0" * 8), "a tensor's name has control characters"),
        (with_header(b'{"a": 1}'), "no valid entry for a"),
        (with_header(ENTRY.replace(b"[2]", b"[3]"), b"0" * 8), "no valid entry for a"),
        (with_header(ENTRY.replace(b"[2]", b"[-2]"), b"0" * 8), "no valid entry for a"),
        (with_header(ENTRY.replace(b"F32", b"Q99"), b"0" * 8), "holds tensors of a type that is not known: Q99"),
        (with_header(TWICE, b"0" * 8), "the values of b do not follow those before them"),
        (with_header(ENTRY.replace(b"0, 8", b"4, 12"), b"0" * 12), "the values of a do not follow those before them"),
        (with_header(ENTRY, b"0" * 5), "74 of 77 bytes are there; download it again"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "it is a Git LFS pointer"),
        (b"GGUF\x03\x00\x00\x00" + b"0" * 40, "it is a GGUF file"),
        (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P", "it is a pickle"),
        (b"<html><body>Sign in</body></html>", "it is a web page"),
    ],
)
def test_a_file_that_is_not_safetensors_says_what_it_is(contents: bytes, words: str, tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    file.write_bytes(contents)
    with pytest.raises(UnreadableFile, match=words):
        read_header(file)


@pytest.mark.parametrize("field", ["bias", "modules_to_save", "init_lora_weights", "use_qalora", "some\nfield"])
def test_a_configuration_that_is_more_than_a_lora_is_refused(field: str) -> None:
    plain = {"peft_type": "LORA", "r": 2, "bias": "none", "modules_to_save": None, "lora_dropout": 0.5, "new": False}
    assert applied(plain) == {"r": 2}
    with pytest.raises(UnsupportedAdapter, match="more than a LoRA beside the weights; merge it") as refused:
        applied(plain | {field: "pissa"})
    assert (field if field.isprintable() else "a field") in str(refused.value)


def test_a_valid_header_is_read(tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    file.write_bytes(with_header(ENTRY, b"0" * 8))
    assert read_header(file).tensors == {"a": ("F32", (2,), 8)}


@pytest.mark.parametrize(
    ("name", "contents", "words"),
    [
        (
            "red.bin",
            b"\x80\x02",
            r"LoRA red \(red.bin\): only .safetensors files .* convert it with torch.load",
        ),
        (
            "red.safetensors",
            b"version https://git-lfs.github.com/spec/v1\n",
            r"LoRA red \(red.*\): it is a Git LFS",
        ),
        ("red.safetensors", with_header(json.dumps({}).encode()), r"LoRA red \(red.safetensors\): it holds no LoRA"),
    ],
)
def test_a_start_with_a_bad_lora_is_refused_before_the_model_loads(
    name: str, contents: bytes, words: str, tmp_path: Path
) -> None:
    file = tmp_path / name
    file.write_bytes(contents)
    settings = Settings(model=ModelSettings(loras=(LoraSettings(name="red", path=str(file)),)))
    with pytest.raises(ConfigError, match=words):
        preflight.check(settings)
