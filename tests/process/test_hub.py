"""A model and a LoRA by their hub ids: from the hub's cache on this machine, as after a download, without a network."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import diffusers
import numpy as np
import torch
from PIL import Image

from cache_dit_serving.config.settings import LoraSettings, ModelSettings, RequestDefaults, Settings
from cache_dit_serving.pipeline.load import EMBEDDED_FOLDER
from tests.support.in_process import draw, load
from tests.support.loras import save_lora
from tests.support.server import COMMAND

PROMPT = "a red apple"
REVISION = "0123456789abcdef0123456789abcdef01234567"


def in_cache(cache: Path, hub_id: str, files: Path) -> None:
    """Files as huggingface_hub keeps those that it has downloaded."""
    folder = cache / f"models--{hub_id.replace('/', '--')}"
    shutil.copytree(files, folder / "snapshots" / REVISION)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(REVISION)


def test_a_model_and_a_lora_by_hub_id(tmp_path: Path) -> None:
    cache, lora = tmp_path / "hub", tmp_path / "lora"
    lora.mkdir()
    pipe = diffusers.DiffusionPipeline.from_pretrained(EMBEDDED_FOLDER, dtype=torch.float32)
    file = save_lora(pipe, lora / "red.safetensors", seed=1)
    in_cache(cache, "maker/Emoji", EMBEDDED_FOLDER)
    in_cache(cache, "maker/Red", lora)
    command = [COMMAND, "generate", PROMPT, "--seed", "3"]
    command += ["--config", "generic", "--model-path", "maker/Emoji", "--dtype", "float32"]
    command += ["--lora-path", "maker/Red", "--lora-name", "red.safetensors", "--disable-fuse-lora"]
    command += ["--steps", "4", "-o", str(tmp_path / "drawn.png")]
    size = {"width": 96, "height": 96}
    environ = os.environ | {f"CACHE_DIT_SERVING__DEFAULTS__{name.upper()}": str(side) for name, side in size.items()}
    environ |= {"HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr[-2000:]

    model = ModelSettings(path=str(EMBEDDED_FOLDER), dtype="float32", loras=(LoraSettings(name="red", path=str(file)),))
    loaded = load(Settings(model=model, defaults=RequestDefaults.model_validate(size)))
    local = draw(loaded, prompt=PROMPT, num_inference_steps=4)
    expected = np.rint(local.media.array * 255).astype(np.uint8)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "drawn.png")), expected)
