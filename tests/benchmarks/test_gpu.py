"""The benchmarks for GPUs, tried on a CPU with models made tiny."""

from __future__ import annotations

import argparse
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import full_size, gpu
from benchmarks.card import flop_of_step
from cache_dit_serving.config.catalog import BUNDLE_ROOT
from cache_dit_serving.config.settings import Settings
from cache_dit_serving.pipeline.load import load_pipeline

BILLIONS = {
    "flux.1-dev": {"text_encoder": 0.12, "text_encoder_2": 4.76, "transformer": 11.90, "vae": 0.08},
    "qwen-image": {"text_encoder": 8.29, "transformer": 20.43, "vae": 0.13},
}
"""Parameters of the published models."""


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *words], check=False, cwd=BUNDLE_ROOT, capture_output=True, text=True, timeout=420
    )


def facts_with(milliseconds: dict[str, float]) -> gpu.Facts:
    return gpu.Facts(flop=1.0, rate=1.0, backends=milliseconds, quant_type="float8_per_row")


def printed(*words: str) -> str:
    """What a benchmark prints."""
    ended = run(*words)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert "not run" not in ended.stdout, ended.stderr[-3000:]
    return ended.stdout


@pytest.mark.parametrize("model", list(full_size.MODELS))
def test_a_model_has_the_published_number_of_parameters(model: str) -> None:
    billions = {}
    for name, component in json.loads(full_size.MODELS[model].read_text(encoding="utf-8"))["components"].items():
        library, class_name = component["class"]
        cls = getattr(importlib.import_module(library), class_name)
        if "config" in component and name != "scheduler":
            config = component["config"]
            with torch.device("meta"):
                network = cls.from_config(config) if library == "diffusers" else cls(cls.config_class(**config))
            billions[name] = round(sum(parameter.numel() for parameter in network.parameters()) / 1e9, 2)
    assert billions == BILLIONS[model]


def test_the_table_of_accelerations_from_end_to_end() -> None:
    rows = ("cache", "all together, served")
    page = printed(
        "benchmarks.gpu", "--model", "qwen-image", "--tiny", "--rounds", "1", "--without", "compile", "--rows", *rows
    )
    cells = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")][1:]
    assert [row[0] for row in cells] == ["plain diffusers", "+ cache", "all together, served"]
    assert [row[4] for row in cells] == ["8", "4", "4"]
    for _, seconds, times, step_ms, *_ in cells:
        assert float(seconds) > 8 * float(step_ms) / 1000 * 0.5
        assert float(times) == pytest.approx(float(cells[0][1]) / float(seconds), rel=0.1)
    assert re.search(r"Serving adds [\d.]+ ms .* [\d.]+ %; [\d.]+ ms of them make the PNG file", page)
    assert "the figures say nothing about the model" in page


@pytest.mark.parametrize("model", list(full_size.MODELS))
def test_attention_is_measured_on_the_transformers_query(model: str, tmp_path: Path) -> None:
    full_size.write(model, tmp_path / model, tiny=True)
    tree = {"model": {"path": str(tmp_path / model), "weights": "random", "dtype": "float32"}}
    pipe: Any = load_pipeline(Settings.model_validate(tree), full_size.say)
    fields = full_size.request_of(model) | {"prompt": "a cat", "width": 64, "height": 64, "output_type": "latent"}
    flop, query = flop_of_step(pipe, fields)
    config = pipe.transformer.config
    assert query.shape[1] == config.num_attention_heads
    assert query.shape[3] == config.attention_head_dim
    assert query.shape[2] > (64 // 16) ** 2  # the picture's tokens and the prompt's
    assert flop > 0


@pytest.mark.parametrize(
    ("milliseconds", "backend"),
    [
        ({"native": 1.0, "_native_cudnn": 0.98}, "native"),
        ({"native": 1.0, "_native_cudnn": 0.9}, "_native_cudnn"),
        ({"native": 1.0}, "native"),
    ],
)
def test_an_attention_backend_gets_a_row_if_it_is_faster_by_more_than_noise(
    milliseconds: dict[str, float], backend: str
) -> None:
    assert facts_with(milliseconds).backend == backend


@pytest.mark.parametrize(("without", "compiled"), [((), True), (("compile",), False)])
def test_quantised_weights_are_measured_compiled(without: tuple[str, ...], compiled: bool) -> None:
    arguments = argparse.Namespace(mask="ultra", without=without)
    trees = gpu._trees(facts_with({"native": 1.0}), arguments)
    assert trees["quantised"]["QUANTIZE__QUANT_TYPE"] == "float8_per_row"
    for row in ("quantised", "all together"):
        assert ("COMPILE__DYNAMIC" in trees[row]) is compiled


@pytest.mark.parametrize("benchmark", ["benchmarks.gpu", "benchmarks.gpu_ranks"])
def test_without_a_gpu_no_large_model_is_made(benchmark: str) -> None:
    ended = run(benchmark)
    assert ended.returncode == 1
    assert "there is no GPU here" in ended.stderr


def test_the_table_of_ranks() -> None:
    table = printed("benchmarks.gpu_ranks", "--tiny", "--steps", "8", "--side", "128", "--rounds", "1")
    ranks, seconds, step_ms, _, cached_steps, times, _ = table.splitlines()[-1].strip("| ").split(" | ")
    assert (ranks, times) == ("1", "1.00")
    assert float(step_ms) == pytest.approx(1000 * float(seconds) / 8, rel=0.1)
    assert 0 <= int(cached_steps) < 8
