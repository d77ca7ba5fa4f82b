"""Quantised weights on the embedded model: what runs here is run, what does not is refused by name."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import PipelineQuantizationConfig, TorchAoConfig
from torchao.quantization import Int8WeightOnlyConfig

from cache_dit_serving.config.acceleration import QuantizeSettings
from cache_dit_serving.config.settings import LoraSettings, Settings
from cache_dit_serving.engine.model_info import model_info
from cache_dit_serving.errors import LoadError
from cache_dit_serving.measure.distances.pictures import psnr
from cache_dit_serving.pipeline import quantize
from cache_dit_serving.pipeline.load import EMBEDDED_FOLDER
from cache_dit_serving.pipeline.protocol import Loaded
from tests.support.in_process import EMBEDDED, UNCACHED, draw, load, unwarmed
from tests.support.loras import with_loras

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
MONOCHROME = "embedded/monochrome"


def quantised(settings: Settings = UNCACHED, **fields: Any) -> Settings:
    """Without a warm-up: each test draws what it looks at."""
    return unwarmed(settings).model_copy(update={"quantize": QuantizeSettings.model_validate(fields)})


def at(folder: Path, settings: Settings) -> Settings:
    return settings.model_copy(update={"model": settings.model.model_copy(update={"path": str(folder)})})


def picture(loaded: Loaded, **fields: Any) -> np.ndarray[Any, Any]:
    return draw(loaded, **fields).media.array


@pytest.fixture(scope="module")
def whole(uncached: Loaded) -> np.ndarray[Any, Any]:
    """The picture of whole weights."""
    return picture(uncached)


@pytest.fixture(scope="module")
def in_int8() -> Loaded:
    return load(quantised(EMBEDDED, quant_type="int8_wo"))


@pytest.mark.parametrize(
    ("quant_type", "least_db"),
    [
        ("int8_weight_only", 40),
        pytest.param("int8_per_row", 40, marks=pytest.mark.verified),
        pytest.param("int8_per_tensor", 35, marks=pytest.mark.verified),
        pytest.param("float8_weight_only", 30, marks=pytest.mark.verified),
    ],
)
def test_what_torchao_runs_on_a_cpu_draws_nearly_the_same_picture(
    quant_type: str, least_db: float, whole: np.ndarray[Any, Any]
) -> None:
    loaded = load(quantised(quant_type=quant_type))
    drawn = picture(loaded)
    assert not np.array_equal(drawn, whole)
    assert psnr(drawn, whole) > least_db
    (summary,) = model_info(loaded).quantization or []
    assert (summary.name, summary.type) == ("transformer", quant_type)
    assert summary.layers > 50
    assert summary.bytes_before is not None
    assert summary.bytes < 0.5 * summary.bytes_before


def test_the_cache_engages_on_quantised_weights_and_what_it_reuses_nothing_of_is_as_without(in_int8: Loaded) -> None:
    report = draw(in_int8).record.cache
    assert report.engaged
    assert report.cached_steps > 0
    through = picture(in_int8, cache={"residual_diff_threshold": 0.0})
    assert np.array_equal(through, picture(in_int8, speed="lossless"))


@pytest.mark.verified
def test_loras_lie_beside_quantised_weights_or_are_fused_before(whole: np.ndarray[Any, Any], in_int8: Loaded) -> None:
    beside = load(with_loras(quantised(quant_type="int8_wo"), LoraSettings(name="mono", path=MONOCHROME, scale=0.0)))
    fused = load(with_loras(quantised(quant_type="int8_wo"), LoraSettings(name="mono", path=MONOCHROME, fuse=True)))
    drawn = picture(beside, loras=[{"name": "mono"}])
    assert psnr(drawn, picture(fused)) > 30
    assert psnr(drawn, whole) < 25
    assert np.array_equal(picture(beside), picture(in_int8, speed="lossless"))


@pytest.mark.verified
def test_each_component_has_a_type_of_its_own() -> None:
    settings = quantised(
        components_to_quantize={"transformer": "float8_wo", "text_encoder_2": {"quant_type": "int8_wo"}},
        exclude_layers=["single_transformer_blocks", "embed", "mod", "to_q"],
    )
    summary = model_info(load(settings)).quantization or []
    assert [(each.name, each.type) for each in summary] == [
        ("transformer", "float8_weight_only"),
        ("text_encoder_2", "int8_weight_only"),
    ]
    all_layers = (model_info(load(quantised(quant_type="float8_wo"))).quantization or [])[0].layers
    assert summary[0].layers < all_layers


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"quant_type": "float8"}, "float8_per_row does not run on cpu; usable here: float8_weight_only, int8_per_row"),
        ({"quant_type": "nvfp4"}, "nvfp4 does not run on cpu"),
        ({"quant_type": "int4"}, "int4_weight_only does not run on cpu"),
        ({"quant_type": "bnb_4bit"}, "bitsandbytes_4bit does not run on cpu"),
        ({"quant_type": "svdq_int4_r32_dq"}, "svdq_int4_r32_dq does not run on cpu"),
        ({"quant_type": "int8_wo", "precision_plan": {"to_q": "per_block"}}, "float8_per_block does not run on cpu"),
        ({"quant_type": "int8_wo", "components_to_quantize": ["prior"]}, "there is no prior; there are: vae, "),
        ({"quant_type": "int8_wo", "exclude_layers": ["to", "proj", "net", "norm"]}, "no layer of transformer"),
        ({"pipeline_config_path": "/nowhere.py"}, r"pipeline_config_path: the file fails \(FileNotFoundError\)"),
    ],
)
def test_what_cannot_be_had_fails_the_start_by_name(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(LoadError, match=words):
        load(quantised(**fields))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"quant_type": "int3"}, "int3 is no type of quantisation; there are: float8_per_row"),
        ({}, "quant_type is missing"),
        ({"quant_type": "int8", "components_to_quantize": {"transformer": "int8"}}, "quant_type has no effect"),
        ({"quant_type": "int8", "precision_plan": {"a": "int8"}, "regional_quantize": False}, "precision_plan has no"),
    ],
)
def test_settings_that_make_no_sense_are_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        QuantizeSettings.model_validate(fields)


def test_a_gpu_too_old_or_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, capability = torch.device("cuda"), (8, 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert quantize.refusal("float8_per_row", cuda) == "needs a GPU of compute capability 8.9; this one has 8.0"
    assert "needs the package mslk" in str(quantize.refusal("int4_weight_only", cuda))
    assert "needs a calibration" in str(quantize.refusal("svdq_int4_r32", cuda))
    assert quantize.usable_types(cuda) == ["int8_per_row", "int8_per_tensor", "int8_weight_only"]
    capability = (9, 0)
    assert quantize.refusal("float8_per_row", cuda) is None
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torchao" else found(name))
    assert quantize.refusal("int8_per_row", CPU) == (
        "needs the package torchao, which is not installed: pip install -r requirements-quantization.txt"
    )


def test_float8_by_rows_wants_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    settings = QuantizeSettings(quant_type="float8")
    quantize.check(settings, torch.device("cuda"), "bfloat16")
    with pytest.raises(LoadError, match=r"float8_per_row wants model\.dtype bfloat16, not float32"):
        quantize.check(settings, torch.device("cuda"), "float32")


def test_an_operators_file_quantises_as_the_model_is_loaded(tmp_path: Path, whole: np.ndarray[Any, Any]) -> None:
    file = tmp_path / "quant.py"
    file.write_text(
        "from diffusers import PipelineQuantizationConfig, TorchAoConfig\n"
        "from torchao.quantization import Int8WeightOnlyConfig\n\n"
        "def get_pipeline_quant_config():\n"
        '    return PipelineQuantizationConfig(quant_mapping={"transformer": TorchAoConfig(Int8WeightOnlyConfig())})\n'
    )
    loaded = load(quantised(pipeline_config_path=file))
    assert psnr(picture(loaded), whole) > 40
    (summary,) = model_info(loaded).quantization or []
    assert (summary.name, summary.type, summary.bytes_before) == ("transformer", "torchao", None)
    file.write_text("def get_pipeline_quant_config():\n    return {}\n")
    with pytest.raises(LoadError, match="returns another type"):
        load(quantised(pipeline_config_path=file))
    file.write_text("pass\n")
    with pytest.raises(LoadError, match=r"has no get_pipeline_quant_config\(\)"):
        load(quantised(pipeline_config_path=file))


def test_weights_of_another_library_are_refused_by_name(tmp_path: Path) -> None:
    shutil.copytree(EMBEDDED_FOLDER, tmp_path / "model")
    file = tmp_path / "model" / "transformer" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": {"quant_method": "nunchaku"}}))
    with pytest.raises(LoadError, match="transformer is quantised by nunchaku, which is not supported"):
        load(at(tmp_path / "model", UNCACHED))


@pytest.mark.verified
def test_a_model_that_was_saved_quantised_is_served_and_is_not_quantised_again(tmp_path: Path) -> None:
    config = PipelineQuantizationConfig(quant_mapping={"transformer": TorchAoConfig(Int8WeightOnlyConfig())})
    pipe = diffusers.DiffusionPipeline.from_pretrained(EMBEDDED_FOLDER, dtype=torch.float32, quantization_config=config)
    pipe.save_pretrained(tmp_path)
    loaded = load(at(tmp_path, UNCACHED))
    assert [each.type for each in model_info(loaded).quantization or []] == ["torchao"]
    assert np.isfinite(picture(loaded)).all()
    with pytest.raises(LoadError, match=r"transformer is quantised already \(torchao\); leave it out"):
        load(at(tmp_path, quantised(quant_type="int8_wo")))
    with pytest.raises(LoadError, match="cannot be fused into quantised weights; leave fuse out"):
        load(with_loras(at(tmp_path, UNCACHED), LoraSettings(name="mono", path=MONOCHROME, fuse=True)))
