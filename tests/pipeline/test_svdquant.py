"""Checkpoints of cache-dit's SVDQuant, loaded by cache-dit. The CUDA kernels are the only stand-in: none is here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cache_dit
import numpy as np
import pytest
import torch
from diffusers import FluxPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cache_dit_serving import preflight
from cache_dit_serving.config.acceleration import QuantizeSettings
from cache_dit_serving.config.settings import LoraSettings, ModelSettings, Settings
from cache_dit_serving.engine.model_info import model_info
from cache_dit_serving.errors import ConfigError, LoadError
from cache_dit_serving.pipeline import svdquant
from cache_dit_serving.pipeline.load import EMBEDDED_FOLDER
from tests.support.by_diffusers import embedded_by_diffusers
from tests.support.checkpoints import save_svdquant
from tests.support.in_process import EMBEDDED, draw, load, unwarmed

pytestmark = pytest.mark.slow

BASE = str(EMBEDDED_FOLDER)
LINEAR = "cache_dit.quantization.svdquant.linear"
ADA = (8, 9)


def _with(quantize: QuantizeSettings | None = None, **model: Any) -> Settings:
    update = {"model": ModelSettings(**{"dtype": "bfloat16", **model}), "quantize": quantize}
    return unwarmed(EMBEDDED.model_copy(update=update))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_svdquant(tmp_path_factory.mktemp("svdq"))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with the kernels, which multiply by the low-rank part of each layer and add a mean of the rest."""

    def quantize(input: torch.Tensor, lora_down: torch.Tensor, **_: Any) -> Any:
        return input, None, input.float() @ lora_down.float()

    def gemm(
        *,
        act: torch.Tensor,
        wgt: torch.Tensor,
        lora_act_in: torch.Tensor,
        lora_up: torch.Tensor,
        bias: torch.Tensor | None,
        output_dtype: torch.dtype,
        **_: Any,
    ) -> torch.Tensor:
        product = lora_act_in @ lora_up.float().T + act.float().mean(1, keepdim=True) * wgt.float().mean(1) * 1e-3
        return (product if bias is None else product + bias.float()).to(output_dtype)

    monkeypatch.setattr(f"{LINEAR}.svdq_quantize_w4a4_act_fuse_lora", quantize)
    monkeypatch.setattr(f"{LINEAR}.svdq_gemm_w4a4", gemm)
    monkeypatch.setattr(svdquant, "refusal_on", lambda precision, device: None)


@pytest.mark.parametrize(
    ("precision", "device", "capability", "kernels", "why"),
    [
        ("int4", "cuda", (8, 0), True, None),
        ("int4", "cuda", ADA, True, None),
        ("int4", "cuda", (10, 0), True, None),
        ("int4", "cuda", (12, 0), True, None),
        ("nvfp4", "cuda", (12, 0), True, None),
        ("int4", "cuda", (7, 5), True, "needs a GPU of compute capability 8.0 other than 9.0; this one has 7.5"),
        ("int4", "cuda", (9, 0), True, "needs a GPU of compute capability 8.0 other than 9.0; this one has 9.0"),
        ("nvfp4", "cuda", (10, 0), True, "needs a GPU of compute capability 12.0; this one has 10.0"),
        ("int4", "cuda", ADA, False, "needs cache-dit's SVDQuant kernels, which this build of it has not"),
        ("int4", "cpu", None, True, "does not run on cpu"),
        ("int4", "mps", None, True, "does not run on mps"),
    ],
)
def test_a_machine_runs_it_by_its_device_and_the_kernels_of_cache_dit(
    precision: str, device: str, capability: tuple[int, int] | None, kernels: bool, why: str | None
) -> None:
    assert svdquant.refusal(precision, device, capability, kernels=kernels) == why


def test_the_kernels_of_this_build_are_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not svdquant.has_kernels()  # the release of cache-dit has none
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: ADA)
    assert svdquant.refusal_on("int4", torch.device("cuda")) == svdquant.NO_KERNELS
    monkeypatch.setattr("cache_dit.kernels.svdq_extension_is_available", lambda: True)
    assert svdquant.refusal_on("int4", torch.device("cuda")) is None
    assert svdquant.refusal_on("int4", torch.device("cpu")) == "does not run on cpu"


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("by", ["path", pytest.param("component", marks=pytest.mark.verified)])
def test_a_checkpoint_draws_as_cache_dits_loader_has_it_and_the_cache_engages(file: Path, by: str) -> None:
    given: Any = {"path": str(file), "base": BASE}
    if by == "component":
        given = {"path": "embedded", "components": {"transformer": str(file.parent)}}
    loaded = load(_with(**given))
    drawn = draw(loaded, num_inference_steps=2, speed="lossless").media.array
    pipe: Any = FluxPipeline.from_pretrained(EMBEDDED_FOLDER, dtype=torch.bfloat16)
    pipe.set_progress_bar_config(disable=True)
    unquantised = embedded_by_diffusers(pipe, loaded, 2)
    pipe.transformer = cache_dit.load(pipe.transformer, str(file))
    assert np.array_equal(drawn, embedded_by_diffusers(pipe, loaded, 2))
    assert not np.array_equal(drawn, unquantised)
    assert draw(loaded, num_inference_steps=14).record.cache.cached_steps > 0
    info = model_info(loaded)
    (transformer,) = [each for each in info.components if each.name == "transformer"]
    bytes_there = sum(each.nbytes for each in (*pipe.transformer.parameters(), *pipe.transformer.buffers()))
    assert (transformer.file, transformer.format) == (file.name, "cache-dit's SVDQuant svdq_int4_r16_dq")
    assert (transformer.dtype, transformer.bytes) == ("int8", bytes_there)
    (quantised,) = info.quantization or []
    assert (quantised.name, quantised.type, quantised.layers) == ("transformer", "svdq_int4_r16_dq", 88)


@pytest.mark.usefixtures("gpu")
def test_what_does_not_go_with_such_layers_is_refused_by_name(file: Path) -> None:
    given: Any = {"path": str(file), "base": BASE}
    lora = LoraSettings(name="mono", path="embedded/monochrome")
    for fuse in (False, True):
        with pytest.raises(LoadError, match=r"^LoRA mono: no LoRA lies on layers of SVDQuant: fuse it into the full"):
            load(_with(**given, loras=(lora.model_copy(update={"fuse": fuse}),)))
    with pytest.raises(LoadError, match=r"transformer is quantised already \(svdq_int4_r16_dq\); leave it out"):
        load(_with(QuantizeSettings(quant_type="int8_wo"), **given))
    with pytest.raises(LoadError, match=r"model\.path: .* for model\.dtype bfloat16, not float32; set model\.dtype"):
        load(_with(**given, dtype="float32"))


@pytest.mark.usefixtures("gpu")
def test_a_checkpoint_of_another_model_is_refused_by_name(file: Path, tmp_path: Path) -> None:
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    tensors = {name: each[:64].clone() if name.endswith("bias") else each for name, each in load_file(file).items()}
    save_file(tensors, tmp_path / "other.safetensors", metadata)
    with pytest.raises(LoadError, match=r"model\.path: other\.safetensors has layers of another model than this Flux"):
        load(_with(path=str(tmp_path / "other.safetensors"), base=BASE))


@pytest.mark.verified
def test_a_machine_without_cuda_refuses_it_before_the_load(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = _with(path=str(file), base=BASE, device="cpu")
    line = (
        r"^model\.path: svdq_int4_r16_dq\.safetensors: it is quantised as cache-dit's SVDQuant \(svdq_int4_r16_dq\), "
        r"which does not run on cpu; serve the full weights, quantised by `quantize` if need be, or take the file in "
    )
    with pytest.raises(LoadError, match=line):
        load(settings)
    for name, value in (("PATH", str(file)), ("BASE", BASE), ("DEVICE", "cpu")):
        monkeypatch.setenv(f"CACHE_DIT_SERVING__MODEL__{name}", value)
    with pytest.raises(ConfigError, match=line):
        preflight.check(settings)
