"""Checkpoints of cache-dit's SVDQuant by their headers."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from cache_dit_serving.checkpoints.checkpoint_file import CheckpointFile, Kind
from cache_dit_serving.checkpoints.schemes import Scheme
from cache_dit_serving.config.settings import ModelSettings
from cache_dit_serving.config.sources import UnusableSource, sources_of
from cache_dit_serving.pipeline.load import EMBEDDED_FOLDER
from cache_dit_serving.safetensors_header import UnreadableFile
from tests.support.checkpoints import as_comfyui, save, save_svdquant, transformer_tensors

BASE = str(EMBEDDED_FOLDER)
LAYER = "blocks.0.to_q"
ABOUT = {"version": 2, "quant_type": "svdq_int4_r32", "quantized_layer_names": [LAYER]}
TENSORS = {
    f"{LAYER}.qweight": torch.zeros(2, 2, dtype=torch.int8),
    f"{LAYER}.smooth_factor": torch.ones(2, dtype=torch.bfloat16),
}


@pytest.fixture(scope="module")
def svdquant(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """As :func:`save_svdquant`, which quantises once for each type."""
    saved = functools.cache(lambda quant_type: save_svdquant(tmp_path_factory.mktemp("svdq"), quant_type))

    def copied(folder: Path, quant_type: str = "svdq_int4_r16_dq") -> Path:
        shutil.copytree(saved(quant_type).parent, folder, dirs_exist_ok=True)
        return folder / saved(quant_type).name

    return copied


def _save(folder: Path, about: Any = ABOUT, tensors: dict[str, torch.Tensor] = TENSORS) -> Path:
    text = about if isinstance(about, str) else json.dumps(about)
    save_file(tensors, folder / "a.safetensors", {"cache_dit_svdq_ptq": text})
    return folder / "a.safetensors"


@pytest.mark.parametrize(("quant_type", "precision"), [("svdq_int4_r16_dq", "int4"), ("svdq_nvfp4_r16_dq", "nvfp4")])
def test_a_file_that_cache_dit_wrote_is_a_transformers_quantised_layers(
    svdquant: Callable[..., Path], tmp_path: Path, quant_type: str, precision: str
) -> None:
    file = CheckpointFile.read(svdquant(tmp_path, quant_type))
    assert (file.kind, file.scheme, file.refusal) == (Kind.DENOISER, Scheme.CACHE_DIT, None)
    assert file.format == f"cache-dit's SVDQuant {quant_type}"
    layers = file.svdquant
    assert layers is not None
    assert (layers.quant_type, layers.precision, layers.count, layers.dtype) == (quant_type, precision, 88, "bfloat16")
    assert CheckpointFile.read(_save(tmp_path)).kind is Kind.DENOISER


@pytest.mark.parametrize(
    ("about", "tensors", "words"),
    [
        ("{", TENSORS, "its metadata cache_dit_svdq_ptq is damaged"),
        ("[" * 100_000, TENSORS, "is damaged"),
        ("[]", TENSORS, "is damaged"),
        ({}, TENSORS, "is damaged"),
        (ABOUT | {"version": 3}, TENSORS, "it is version 3 of cache-dit's SVDQuant format, not 2"),
        (ABOUT | {"quant_type": "int8"}, TENSORS, "its type int8 is unknown"),
        (ABOUT | {"quantized_layer_names": [LAYER, "b.1"]}, TENSORS, r"lacks the tensors of the layer b\.1"),
        (ABOUT, TENSORS | {"b.1.qweight": torch.ones(1)}, r"has tensors of the layer b\.1, against its metadata"),
        (ABOUT, {f"{LAYER}.qweight": torch.ones(1)}, "its layers are of the types unknown"),
    ],
)
def test_a_file_that_contradicts_its_metadata_is_refused(
    tmp_path: Path, about: Any, tensors: dict[str, torch.Tensor], words: str
) -> None:
    with pytest.raises(UnreadableFile, match=rf"{words}.*; quantise the full weights again with cache-dit 1\.5\.3"):
        CheckpointFile.read(_save(tmp_path, about, tensors))


@pytest.mark.parametrize("by_folder", [False, True], ids=["file", "folder"])
def test_the_layers_lie_over_the_transformer_of_the_model_or_the_base(
    svdquant: Callable[..., Path], tmp_path: Path, by_folder: bool
) -> None:
    file = svdquant(tmp_path / "svdq")
    path = str(file.parent if by_folder else file)
    alone = sources_of(ModelSettings(path=path, base=BASE))
    beside = sources_of(ModelSettings(path=BASE, components={"transformer": path, "vae": BASE}))
    for sources in (alone, beside):
        found = sources.components["transformer"].file
        assert found is not None
        assert (sources.location, found.path) == (BASE, file)
    assert beside.replaced == {"vae"}
    with pytest.raises(UnusableSource, match=r"is a transformer alone \(cache-dit's SVDQuant .*model\.base"):
        sources_of(ModelSettings(path=path))
    with pytest.raises(UnusableSource, match=r"components\.vae: svdq_int4_r16_dq\.safetensors .*: that is no vae"):
        sources_of(ModelSettings(path=BASE, components={"vae": path}))


def test_layers_beside_a_whole_pipeline_in_one_file_are_refused(svdquant: Callable[..., Path], tmp_path: Path) -> None:
    whole = save(
        {**as_comfyui(transformer_tensors()), "vae.encoder.conv_in.weight": torch.ones(1)}, tmp_path / "w.safetensors"
    )
    layers = {"transformer": str(svdquant(tmp_path))}
    with pytest.raises(UnusableSource, match=r"components\.transformer: .* has quantised layers alone, .* of w\.safe"):
        sources_of(ModelSettings(path=str(whole), base=BASE, components=layers))


@pytest.mark.parametrize("name", ["gone.safetensors", "../svdq_int4_r16_dq.safetensors", 3])
def test_a_folder_whose_configuration_names_no_file_beside_it_is_refused(
    svdquant: Callable[..., Path], tmp_path: Path, name: object
) -> None:
    svdquant(tmp_path)
    config = json.loads((tmp_path / "quant_config.json").read_text()) | {"checkpoint_path": name}
    (tmp_path / "svdq").mkdir()
    (tmp_path / "svdq" / "quant_config.json").write_text(json.dumps(config))
    with pytest.raises(UnusableSource, match=r"svdq: quant_config\.json names no checkpoint that is beside it"):
        sources_of(ModelSettings(path=BASE, components={"transformer": str(tmp_path / "svdq")}))
