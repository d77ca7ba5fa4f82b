"""The hardware and versions that a measurement holds for."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path

import torch


def machine() -> str:
    """Return the processor, the GPUs and the libraries' versions, as two sentences."""
    cpu = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    gpus = ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names)) or "no GPU"
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "cache-dit", "bentoml"))
    return f"Hardware: {os.cpu_count()} cores ({cpu}), {gpus}. Python {platform.python_version()}, {versions}."


def _lines(path: str) -> list[str]:
    file = Path(path)
    return file.read_text().splitlines() if file.exists() else []
