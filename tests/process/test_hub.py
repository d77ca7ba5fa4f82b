"""A model and a LoRA by their hub ids: from the cache on this machine, and files of hub ids from a hub."""

from __future__ import annotations

import base64
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from cache_dit_serving.config.settings import LoraSettings, ModelSettings, RequestDefaults, Settings
from cache_dit_serving.pipeline.load import EMBEDDED_FOLDER
from tests.support.checkpoints import TRANSFORMER, VAE, save, save_gguf
from tests.support.hub import hub_of
from tests.support.in_process import draw, load, unwarmed
from tests.support.loras import save_lora
from tests.support.server import COMMAND, bentoml_serving, options, ready

PROMPT = "a red apple"
SMALL = {"DEFAULTS__WIDTH": 96, "DEFAULTS__HEIGHT": 96, "SERVER__WARM_UP": False}
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
    run = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=240, check=False)
    assert run.returncode == 0, run.stderr[-2000:]

    model = ModelSettings(path=str(EMBEDDED_FOLDER), dtype="float32", loras=(LoraSettings(name="red", path=str(file)),))
    loaded = load(Settings(model=model, defaults=RequestDefaults.model_validate(size)))
    local = draw(loaded, prompt=PROMPT, num_inference_steps=4)
    expected = np.rint(local.media.array * 255).astype(np.uint8)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "drawn.png")), expected)


def test_a_server_draws_with_files_of_hub_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, cache = tmp_path / "hub" / "maker" / "Files", tmp_path / "cache"
    (files / "split").mkdir(parents=True)
    transformer = save_gguf(load_file(TRANSFORMER), files / "split" / "emoji-Q8_0.gguf")
    tensors = load_file(VAE)
    vae = save(tensors | {"decoder.conv_out.bias": tensors["decoder.conv_out.bias"] + 0.1}, files / "vae.safetensors")
    command = [sys.executable, "-m", "cache_dit_serving.serve", "--config", "generic", "--dtype", "float32"]
    command += ["--host", "127.0.0.1", "--model-path", "maker/Files/split/emoji-Q8_0.gguf"]
    command += ["--model-base", str(EMBEDDED_FOLDER)]
    command += ["--component", "vae=https://huggingface.co/maker/Files/blob/main/vae.safetensors"]
    with hub_of(tmp_path / "hub", cache, monkeypatch) as hub:
        environ = {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HUB_CACHE": str(cache), **options(**SMALL)}
        with bentoml_serving(tmp_path / "server", command, environ=environ) as server:
            server.wait_for(ready)
            answer = server.generate(prompt=PROMPT, seed=3, num_inference_steps=4)
            info = server.get("/get_model_info").json()
        assert sorted(hub.given) == ["emoji-Q8_0.gguf", "vae.safetensors"]
    components = {each["name"]: (each["file"], each["format"]) for each in info["components"]}
    assert info["model"] == "emoji-Q8_0.gguf"
    assert components["transformer"] == ("emoji-Q8_0.gguf", "GGUF Q8_0")
    assert components["vae"] == ("vae.safetensors", "safetensors BF16")

    local = ModelSettings(
        path=str(transformer), base=str(EMBEDDED_FOLDER), components={"vae": str(vae)}, dtype="float32"
    )
    loaded = load(unwarmed(Settings(model=local, defaults=RequestDefaults(width=96, height=96))))
    drawn = draw(loaded, prompt=PROMPT, num_inference_steps=4).media.array
    expected = np.rint(drawn * 255).astype(np.uint8)
    (picture,) = answer.json()["images"]
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(picture)))), expected)
