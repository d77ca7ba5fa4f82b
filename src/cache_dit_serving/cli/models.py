"""`cache-dit-serving models`: prints a table of the models that have a configuration."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from cache_dit_serving.cli.command_line import CommandLine
from cache_dit_serving.config.catalog import CatalogEntry, catalog
from cache_dit_serving.gpus import visible_gpus

DESCRIPTION = """\
List the models that a configuration knows. `cache-dit-serving serve --config NAME` serves one; `--model-path` with a
model's folder or hub id finds its configuration by itself.

  examples:
    cache-dit-serving models video       those that make or take a video
    cache-dit-serving models --check     the attention backends and quantised types that this machine runs
"""
HEAD = ("name", "task", "size", "memory", "fits here", "licence", "hub id")
NOTES = """Size: parameters of all networks, in billions (B) or millions (M). Memory: the weights alone, computed
from the size and the configuration's dtype; an output needs more, most for a long video. Fits here: yes where the
weights leave a quarter of the memory free, tight where they leave less."""
UNKNOWN = "unknown"
GB = 1e9
BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
FREE = 0.25
"""Minimum share of free memory beside the weights for a `yes` in the column `fits here`."""


class Machine(NamedTuple):
    """Device that would run a model, and its memory in GB."""

    device: str
    memory_gb: float


def main(arguments: Sequence[str]) -> int:
    """Print the table. Return exit status 1 if a search finds nothing."""
    parser = CommandLine("cache-dit-serving models", "[SEARCH] [--check]", DESCRIPTION)
    parser.add_argument("search", nargs="?", default="", help="only those whose name, task or hub id holds this")
    parser.add_argument("--check", action="store_true", help="say what this machine can run, and nothing else")
    parsed = parser.parse_args(arguments)
    wanted, machine = parsed.search.lower(), this_machine()
    if parsed.check:
        print(checked(machine))
        return 0
    rows = [row_of(entry, machine) for entry in catalog() if entry.about.task]
    rows = [row for row in rows if wanted in " ".join((row[0], row[1], row[-1])).lower()]
    widths = [max(map(len, column)) for column in zip(HEAD, *rows, strict=True)]
    for row in (HEAD, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(f"\nHere: {machine.device}, {machine.memory_gb:.0f} GB. {NOTES}")
    return 0 if rows else 1


def checked(machine: Machine) -> str:
    """Return the attention backends and quantised types that run here, and the reason for each that does not."""
    from cache_dit_serving.pipeline.environment import quiet_libraries

    quiet_libraries()
    from cache_dit_serving.pipeline import attention, load, quantize

    device = load.choose_device(None)
    lines = [f"{machine.device}, {machine.memory_gb:.0f} GB"]
    for what, usable, others, refusal in (
        ("attention backends", attention.usable_backends(device), attention.BACKENDS, attention.refusal),
        ("types of quantisation", quantize.usable_types(device), quantize.OFFERED, quantize.refusal),
    ):
        lines.append(f"\n{what}: {', '.join(usable) or 'none'}")
        lines += [f"  {name} {refusal(name, device)}" for name in others if name not in usable]
    return "\n".join(lines)


def row_of(entry: CatalogEntry, machine: Machine) -> tuple[str, ...]:
    """Return a model's cells, in the order of `HEAD`."""
    about = entry.about
    weights = about.parameters and about.parameters * BYTES[entry.model.dtype]
    return (
        entry.name,
        about.task or "",
        in_billions(about.parameters) if about.parameters else UNKNOWN,
        in_gb(weights) if weights else UNKNOWN,
        fits(weights, machine.memory_gb) if weights else UNKNOWN,
        about.licence or UNKNOWN,
        entry.model.path,
    )


def in_billions(parameters: float) -> str:
    """Format a number of parameters, given in billions. Below 0.1 billion it is shown in millions."""
    return f"{parameters:g} B" if parameters >= 0.1 else f"{parameters * 1000:.3g} M"


def in_gb(weights: float) -> str:
    """Format a size of weights, given in GB. Below 0.5 GB it is shown in MB."""
    return f"{weights:.0f} GB" if weights >= 0.5 else f"{weights * 1000:.0f} MB"


def fits(weights: float, memory: float) -> str:
    """Return `yes`, `tight` or `no` for weights and a memory in the same unit."""
    if weights <= memory * (1 - FREE):
        return "yes"
    return "tight" if weights <= memory else "no"


def machine_by_driver() -> Machine:
    """Return the first visible NVIDIA GPU with its memory, or else the CPU with the host's memory. Imports no torch."""
    import psutil
    import pynvml  # a requirement of bentoml

    by_index, by_uuid = pynvml.nvmlDeviceGetHandleByIndex, pynvml.nvmlDeviceGetHandleByUUID
    first = (visible_gpus(os.environ) or ["0"])[0]
    try:
        pynvml.nvmlInit()
        handle = by_index(int(first)) if first.isdigit() else by_uuid(first)
        return Machine(str(pynvml.nvmlDeviceGetName(handle)), pynvml.nvmlDeviceGetMemoryInfo(handle).total / GB)
    except pynvml.NVMLError:
        return Machine("cpu", psutil.virtual_memory().total / GB)


def this_machine() -> Machine:
    """Return the accelerator with its memory, or else the CPU with the host's memory."""
    import psutil
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is not None and accelerator.type == "cuda":
        return Machine(torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory / GB)
    return Machine(str(accelerator or "cpu"), psutil.virtual_memory().total / GB)
