"""The benchmarks for GPUs, tried on a CPU with models made tiny."""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from benchmarks import full_size, gpu, gpu_ranks
from benchmarks.card import flop_of_step
from benchmarks.progress import say
from cache_dit_serving.config.settings import Settings
from cache_dit_serving.pipeline.load import load_pipeline

BILLIONS = {
    "flux.1-dev": {"text_encoder": 0.12, "text_encoder_2": 4.76, "transformer": 11.90, "vae": 0.08},
    "qwen-image": {"text_encoder": 8.29, "transformer": 20.43, "vae": 0.13},
}
"""Parameters of the published models."""


def facts_with(milliseconds: dict[str, float]) -> gpu.Facts:
    return gpu.Facts(flop=1.0, rate=1.0, backends=milliseconds, quant_type="float8_per_row")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Call a benchmark's `main` with a command line; returns what it prints."""

    def printed(benchmark: ModuleType, *words: str) -> str:
        monkeypatch.setattr(sys, "argv", [benchmark.__name__, *words])
        benchmark.main()
        told = capsys.readouterr()
        assert "not run" not in told.out, told.err[-3000:]
        return told.out

    return printed


def here_unless_served(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Have the rows measured in this process, but for the served one; returns the rows that have a process."""
    in_a_process, rows = gpu.run_row, []

    def run_row(
        name: str, tree: Mapping[str, str], arguments: argparse.Namespace, folder: Path, left_s: float
    ) -> dict[str, Any]:
        if name == gpu.SERVED:
            rows.append(name)
            return in_a_process(name, tree, arguments, folder, left_s)
        with pytest.MonkeyPatch.context() as patch:
            for key, value in gpu.environment_of(tree, arguments, folder).items():
                patch.setenv(key, value)
            row: dict[str, Any] = json.loads(json.dumps(gpu.ROWS[name](arguments)))
        return row

    monkeypatch.setattr(gpu, "run_row", run_row)
    return rows


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


@pytest.mark.verified
def test_the_table_of_accelerations_from_end_to_end(run: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    rows = ("cache", "all together, served")
    processes = here_unless_served(monkeypatch)
    page = run(gpu, "--model", "qwen-image", "--tiny", "--rounds", "1", "--without", "compile", "--rows", *rows)
    assert processes == ["all together, served"]
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
    pipe: Any = load_pipeline(Settings.model_validate(tree), say)
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


@pytest.mark.parametrize("benchmark", [gpu, gpu_ranks])
def test_without_a_gpu_no_large_model_is_made(benchmark: ModuleType, run: Callable[..., str]) -> None:
    with pytest.raises(SystemExit, match="there is no GPU here"):  # a text, so that the exit status is 1
        run(benchmark)


@pytest.mark.verified
def test_the_table_of_ranks(run: Callable[..., str]) -> None:
    table = run(gpu_ranks, "--tiny", "--steps", "8", "--side", "128", "--rounds", "1")
    ranks, seconds, step_ms, _, cached_steps, times, _ = table.splitlines()[-1].strip("| ").split(" | ")
    assert (ranks, times) == ("1", "1.00")
    assert float(step_ms) == pytest.approx(1000 * float(seconds) / 8, rel=0.1)
    assert 0 <= int(cached_steps) < 8
