"""`cache-dit-serving models`: the models that a configuration knows, as a table."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NamedTuple

from cache_dit_serving.config.catalog import CatalogEntry, catalog

HEAD = ("name", "task", "size", "memory", "fits here", "licence", "hub id")
GB = 1e9


class Machine(NamedTuple):
    """What runs a model here."""

    device: str
    memory_gb: float


def main(arguments: Sequence[str]) -> int:
    """Print the table; exit status 1 where a search finds nothing."""
    parser = argparse.ArgumentParser(
        prog="cache-dit-serving models",
        description="List the models that a configuration knows. `cache-dit-serving serve --config NAME` serves one; "
        "`--model-path` with a model's folder or hub id finds its configuration by itself.",
    )
    parser.add_argument("search", nargs="?", default="", help="only those whose name, task or hub id holds this")
    wanted = parser.parse_args(arguments).search.lower()
    machine = this_machine()
    rows = [row_of(entry, machine) for entry in catalog() if entry.about.task]
    rows = [row for row in rows if wanted in " ".join((row[0], row[1], row[-1])).lower()]
    widths = [max(map(len, column)) for column in zip(HEAD, *rows, strict=True)]
    for row in (HEAD, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(f"\nHere: {machine.device}, {machine.memory_gb:.0f} GB. Size is in billions of parameters; memory is for the")
    print(
        "weights in the configuration's dtype and one output at its default size, most of them computed, not measured."
    )
    return 0 if rows else 1


def row_of(entry: CatalogEntry, machine: Machine) -> tuple[str, ...]:
    """A model's cells, in the order of `HEAD`."""
    about = entry.about
    fits = "?" if about.memory_gb is None else "yes" if about.memory_gb <= machine.memory_gb else "no"
    return (
        entry.name,
        about.task or "",
        f"{about.parameters:g} B" if about.parameters else "?",
        f"{about.memory_gb:g} GB" if about.memory_gb else "?",
        fits,
        about.licence or "?",
        entry.model.path,
    )


def this_machine() -> Machine:
    """The accelerator if there is one, else this computer's memory."""
    import psutil
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is not None and accelerator.type == "cuda":
        return Machine(torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory / GB)
    return Machine(str(accelerator or "cpu"), psutil.virtual_memory().total / GB)
