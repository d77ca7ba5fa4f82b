"""Attention backends: which are known, and what each is refused for."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from cache_dit.attention.backends.register import _AttnBackend

from cache_dit_serving.pipeline import attention

CUDA = torch.device("cuda")


def test_every_backend_of_cache_dit_is_known() -> None:
    assert {each.value for each in _AttnBackend} <= {attention.NATIVE, *attention.BACKENDS}


@pytest.mark.parametrize(
    ("capability", "usable"),
    [
        ((7, 5), "native"),
        ((8, 0), "native _native_cudnn _sdpa_cudnn flash flash_varlen sage"),
        ((8, 9), "native _native_cudnn _sdpa_cudnn flash flash_varlen sage ffpa ffpa_fp8 ffpa_fp8_per_block"),
        ((9, 0), "native _native_cudnn _sdpa_cudnn flash flash_varlen _flash_3 sage"),
        ((10, 0), "native _native_cudnn _sdpa_cudnn flash flash_varlen sage sage3"),
        (
            (12, 0),
            "native _native_cudnn _sdpa_cudnn flash flash_varlen sage sage3 ffpa ffpa_fp8 ffpa_fp8_per_block ffpa_fp4",
        ),
    ],
)
def test_a_gpu_with_every_package(capability: tuple[int, int], usable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    assert attention.usable_backends(CUDA) == usable.split()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("ffpa", "needs a GPU of compute capability 8.9 or 12.x; this one has 9.0"),
        ("sage3", "needs a GPU of compute capability 10.x or 12.x; this one has 9.0"),
        ("flash", "needs the package flash_attn, which is not installed"),
        ("_npu_fia", "does not run on cuda"),
        ("flesh", "is not known"),
        ("_native_cudnn", None),
    ],
)
def test_the_reason_names_what_is_missing(name: str, why: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert attention.refusal(name, CUDA) == why
