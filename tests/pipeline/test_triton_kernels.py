"""Settings that need a C compiler on a GPU: refused at the start, not in the first request."""

from __future__ import annotations

import shutil
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import torch

from cache_dit_serving.config.settings import Settings
from cache_dit_serving.errors import LoadError
from cache_dit_serving.pipeline import triton_kernels

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
WANTING: dict[str, dict[str, Any]] = {
    "parallelism.ring_size": {"parallelism": {"ring_size": 2}},
    "parallelism.ulysses_float8": {"parallelism": {"ulysses_size": 2, "ulysses_float8": True}},
    "quantize (float8_per_block)": {"quantize": {"quant_type": "float8_per_block"}},
}


@pytest.fixture
def compilers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> set[str]:
    """Programs that this machine has, none at first; Python's headers are there."""
    there: set[str] = set()
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: name if name in there else None)
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    return there


@pytest.mark.parametrize("key", WANTING)
def test_what_triton_builds_is_refused_without_a_compiler(
    key: str, compilers: set[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = Settings.model_validate(WANTING[key])
    with pytest.raises(LoadError) as refused:
        triton_kernels.check(settings, CUDA)
    assert str(refused.value).startswith(f"{key}: Triton builds its kernels")
    triton_kernels.check(settings, CPU)
    for compiler in ("gcc", "clang"):
        compilers.clear()
        compilers.add(compiler)
        triton_kernels.check(settings, CUDA)
    compilers.clear()
    compilers.add("icx")
    monkeypatch.setenv("CC", "icx")
    triton_kernels.check(settings, CUDA)
    (tmp_path / "Python.h").unlink()
    with pytest.raises(LoadError, match=r"there is no Python\.h .*; install it"):
        triton_kernels.check(settings, CUDA)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"parallelism": {"ulysses_size": 2}},
        {"parallelism": {"tp_size": 2}},
        {"quantize": {"quant_type": "float8_per_row"}},
    ],
)
@pytest.mark.usefixtures("compilers")
def test_other_settings_need_none(fields: dict[str, Any]) -> None:
    triton_kernels.check(Settings.model_validate(fields), CUDA)


@pytest.mark.usefixtures("compilers")
def test_a_type_of_some_layers_counts() -> None:
    plan = {"quant_type": "float8_per_row", "precision_plan": {"attn.to_out": "float8_per_block"}}
    with pytest.raises(LoadError, match="float8_per_block"):
        triton_kernels.check(Settings.model_validate({"quantize": plan}), CUDA)
