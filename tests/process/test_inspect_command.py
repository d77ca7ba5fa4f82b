"""`cache-dit-serving inspect`: what a path is, without torch, and the launcher's line for a broken one."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file

from cache_dit_serving import preflight
from cache_dit_serving.cli import inspect
from cache_dit_serving.cli.flags import parser
from cache_dit_serving.cli.models import Machine
from cache_dit_serving.config.settings import ModelSettings
from cache_dit_serving.errors import ConfigError
from cache_dit_serving.loras.locate import EMBEDDED_LORAS
from cache_dit_serving.pipeline.load import EMBEDDED_FOLDER
from tests.support.checkpoints import save_svdquant
from tests.support.folders import LFS, WEIGHTS, as_variant, edit, linked, replace, save, sharded
from tests.support.server import COMMAND

HERE = Machine("a card", 24.0)


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspect, "machine_by_driver", lambda: HERE)


def inspected(path: Path | str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert inspect.main([str(path), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_folder_is_described_by_its_headers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = linked(tmp_path / "my model")
    sharded(folder / "transformer")
    found = inspected(folder, capsys)
    assert (found["kind"], found["pipeline_class"], found["configuration"]) == ("model", "FluxPipeline", "embedded")
    transformer = next(each for each in found["components"] if each["name"] == "transformer")
    assert transformer["class"] == "FluxTransformer2DModel"
    assert transformer["files"] == [f"{WEIGHTS}-0000{number}-of-00002.safetensors" for number in (1, 2)]
    assert transformer["dtypes"].keys() == {"BF16"}
    assert found["bytes"] == sum(each.get("bytes", 0) for each in found["components"])
    assert found["dtype"] == "float32"
    assert found["memory"] == {
        "weights_bytes": 2 * found["bytes"],
        "largest_bytes": 2 * transformer["bytes"],
        "device": "a card",
        "device_bytes": 24 * 10**9,
        "fits": "yes",
    }
    words = shlex.split(found["command"])
    assert words[:2] == ["cache-dit-serving", "serve"]
    assert parser().parse_args(words[2:]).model_path == str(folder)


def test_a_variant_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = linked(tmp_path / "model")
    as_variant(folder, "fp16")
    assert inspected(folder, capsys)["variant"] == "fp16"


def test_weights_that_do_not_fit_are_told_with_offload(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspect, "machine_by_driver", lambda: Machine("a small card", 0.02))
    assert inspect.main(["embedded"]) == 0
    shown = capsys.readouterr().out
    assert "fits here      no: 24 MB of weights as float32; here: a small card" in shown
    assert "with --enable-cpu-offload the largest component, 15 MB, is there alone" in shown


def test_a_lora_is_told_from_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = inspected(EMBEDDED_LORAS / "monochrome.safetensors", capsys)
    assert (found["kind"], found["format"], found["ranks"]) == ("LoRA", "diffusers", [4])
    assert found["layers"] == {"transformer": 57}
    file = tmp_path / "kohya-8steps.safetensors"
    layer = "lora_unet_double_blocks_0_img_attn_proj"
    metadata = {"ss_network_alpha": "8", "ss_base_model_version": "flux1", "trigger_words": "emoji style"}
    save(file, {f"{layer}.lora_down.weight": torch.zeros(2, 8), f"{layer}.lora_up.weight": torch.zeros(8, 2)}, metadata)
    found = inspected(file, capsys)
    expected = {"format": "kohya", "ranks": [2], "alpha": 8.0, "trigger_words": "emoji style", "trained_steps": 8}
    assert found.items() >= (expected | {"base_model": "flux1"}).items()
    words = shlex.split(found["command"])
    assert parser().parse_args(words[2:]).lora_path == str(file)


def test_a_folder_with_a_lora_is_a_lora(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "adapter_model.safetensors").symlink_to(EMBEDDED_LORAS / "monochrome.safetensors")
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "maker/base"}')
    found = inspected(tmp_path, capsys)
    assert (found["kind"], found["base_model"]) == ("LoRA", "maker/base")


def test_a_checkpoint_is_told_with_its_family(capsys: pytest.CaptureFixture[str]) -> None:
    found = inspected(EMBEDDED_FOLDER / "transformer" / f"{WEIGHTS}.safetensors", capsys)
    assert (found["kind"], found["denoiser"]) == ("transformer alone", "FluxTransformer2DModel")
    assert found["configuration"] == "flux.1-schnell"


@pytest.mark.parametrize("by_folder", [False, True], ids=["file", "folder"])
def test_quantised_layers_are_told_with_the_model_that_they_lie_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], by_folder: bool
) -> None:
    file = save_svdquant(tmp_path / "my layers")
    path = file.parent if by_folder else file
    found = inspected(path, capsys)
    assert (found["kind"], found["layers"]) == ("transformer alone", {"transformer": 88})
    assert found["format"] == "cache-dit's SVDQuant svdq_int4_r16_dq"
    assert "the model that it was quantised from, CUDA" in found["needs"]
    flags = parser().parse_args(shlex.split(found["command"])[2:])
    assert (flags.model_path, flags.component, flags.dtype) == ("MODEL", [f"transformer={path}"], "bfloat16")


def test_a_hub_id_of_a_configuration_needs_no_network(capsys: pytest.CaptureFixture[str]) -> None:
    found = inspected("Qwen/Qwen-Image", capsys)
    assert (found["configuration"], found["memory"]["fits"]) == ("qwen-image", "no")
    assert found["command"] == "cache-dit-serving serve --model-path Qwen/Qwen-Image --cache"


def test_a_model_in_the_hubs_cache_is_described_by_its_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    revision = "0123456789abcdef0123456789abcdef01234567"
    cache = tmp_path / "models--Qwen--Qwen-Image"
    folder = linked(cache / "snapshots" / revision)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(revision)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert inspected("Qwen/Qwen-Image", capsys)["pipeline_class"] == "FluxPipeline"
    (folder / "vae" / f"{WEIGHTS}.safetensors").unlink()
    found = inspected("Qwen/Qwen-Image", capsys)
    assert found["downloaded"].startswith(f"in part: vae has no weights: vae/{WEIGHTS}.safetensors is not there")
    assert found["pipeline_class"] == "QwenImagePipeline"


def broken_folder(folder: Path) -> Path:
    replace(linked(folder) / "vae" / f"{WEIGHTS}.safetensors", LFS)
    return folder


def without_its_class(folder: Path) -> Path:
    edit(linked(folder) / "model_index.json", lambda index: index | {"_class_name": "FluxNextPipeline"})
    return folder


@pytest.mark.parametrize(
    "broken", [broken_folder, without_its_class, lambda folder: folder, lambda _: "~no-such-user/a"]
)
def test_a_broken_path_ends_with_the_launchers_line(
    broken: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(broken(tmp_path / "model"))
    assert inspect.main([path]) == 2
    shown = capsys.readouterr()
    with pytest.raises(ConfigError) as refused:
        preflight.check_path(ModelSettings(path=path))
    assert (shown.out, shown.err) == ("", f"error: {refused.value}\n")
    assert inspect.main([path, "--json"]) == 2
    assert json.loads(capsys.readouterr().out) == {"path": path, "problem": str(refused.value)}


def test_texts_of_a_file_move_no_cursor_and_add_no_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = {"transformer.a.lora_A.weight": torch.ones(1, 1)}
    file = tmp_path / "a.safetensors"
    save_file(tensors, file, {"trigger_words": "\x1b[2Jred\nserve it  rm", "modelspec.architecture": "\x9bflux"})
    assert inspect.main([str(file)]) == 0
    shown = capsys.readouterr().out
    assert r"trigger words  \x1b[2Jred\nserve it  rm" in shown
    assert r"base model     \x9bflux" in shown
    folder = linked(tmp_path / "model")
    os.mkfifo(folder / "quant_config.json")  # is not opened
    edit(folder / "model_index.json", lambda index: index | {"_name_or_path": {"no": "text"}})
    assert "saved_from" not in inspected(folder, capsys)
    edit(folder / "model_index.json", lambda index: index | {"_class_name": "\x1b[2J"})
    assert inspect.main([str(folder)]) == 2
    assert r"names the class \x1b[2J, which" in capsys.readouterr().err


def test_an_index_that_is_nested_too_deep_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = linked(tmp_path / "model")
    replace(folder / "model_index.json", b"[" * 200_000)
    assert inspect.main([str(folder)]) == 2
    assert "model_index.json is not valid JSON" in capsys.readouterr().err


def test_an_unknown_file_is_refused_with_what_it_seems(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "a.safetensors", {"weights.of.something": torch.zeros(2)})
    (tmp_path / "a.md").write_text("# A model")
    for name, words in {"a.safetensors": "unknown file", "a.md": "only .safetensors and .gguf files"}.items():
        assert inspect.main([str(tmp_path / name)]) == 2
        assert words in capsys.readouterr().err


def test_the_command_imports_no_torch() -> None:
    program = "import sys; from cache_dit_serving.cli import inspect; inspect.main(['embedded']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert not {"torch", "diffusers", "transformers", "bentoml"} & set(done.stdout.split())


def test_help_has_an_example_of_each_kind() -> None:
    done = subprocess.run([COMMAND, "inspect", "--help"], capture_output=True, text=True, check=True, timeout=120)
    examples = [line for line in done.stdout.splitlines() if line.startswith("    cache-dit-serving inspect ")]
    assert len(examples) == 4
