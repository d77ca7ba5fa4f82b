"""`cache-dit-serving inspect`: prints what a model, a file of weights or a LoRA is, and the command that serves it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from cache_dit_serving.cli.command_line import CommandLine
from cache_dit_serving.cli.inspected import Inspected, Unservable, inspect
from cache_dit_serving.cli.models import GB, Machine, fits, in_billions, in_gb, machine_by_driver
from cache_dit_serving.logs import one_line

DESCRIPTION = """\
Say what a path is, which configuration it is served with and why, whether its weights fit this machine, and the command
that serves it. Reads headers and small files alone, and loads nothing. A path that cannot be served ends with the
launcher's line and exit status 2.

  examples:
    cache-dit-serving inspect /models/FLUX.1-dev                 a folder: components, dtypes, variant, memory
    cache-dit-serving inspect ./style.safetensors                a LoRA: format, rank, alpha, trigger words
    cache-dit-serving inspect ./qwen-image-Q4_K.gguf             a checkpoint: family and quantisation
    cache-dit-serving inspect Qwen/Qwen-Image --json | jq .memory
"""
MB = 1e6
LABELS = {
    "described": "contents",
    "pipeline_class": "class",
    "saved_from": "saved from",
    "trigger_words": "trigger words",
    "trained_steps": "trained for",
    "trained_shift": "trained shift",
    "base_model": "base model",
}
"""Labels of facts, where the name of the fact is not one."""


def main(arguments: Sequence[str]) -> int:
    """Print the contents of a path. Return exit status 2 for one that cannot be served."""
    parser = CommandLine("cache-dit-serving inspect", "FILE|FOLDER|HUB_ID [--json]", DESCRIPTION)
    parser.add_argument("path", help="a folder saved by save_pretrained, a .safetensors or .gguf file, or a hub id")
    parser.add_argument("--json", action="store_true", help="one JSON object, for programs")
    parsed = parser.parse_args(arguments)
    try:
        found = inspect(parsed.path)
    except Unservable as error:
        if parsed.json:
            print(json.dumps({"path": parsed.path, "problem": str(error)}))
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return 2
    machine = machine_by_driver() if found.memory_bytes else None
    print(json.dumps(as_json(found, machine), indent=2) if parsed.json else "\n".join(lines(found, machine)))
    return 0


def as_json(found: Inspected, machine: Machine | None) -> dict[str, Any]:
    """Return the JSON object: the facts beside the kind, and what is unknown left out."""
    fields = asdict(found)
    needed, largest = fields.pop("memory_bytes"), fields.pop("largest_bytes")
    facts = fields.pop("facts")
    memory = None
    if machine and needed:
        here = {"device": machine.device, "device_bytes": int(machine.memory_gb * GB)}
        memory = {"weights_bytes": needed, "largest_bytes": largest, **here, "fits": _fits(found, machine)}
    every = {"path": fields.pop("path"), "kind": fields.pop("kind"), **facts, **fields, "memory": memory}
    return {name: value for name, value in every.items() if value not in (None, ())}


def lines(found: Inspected, machine: Machine | None) -> Iterator[str]:
    """Yield the lines for people."""
    rows = [("path", found.path), ("kind", found.kind)]
    rows += [(LABELS.get(name, name), _shown(name, value)) for name, value in found.facts.items()]
    if found.configuration:
        rows.append(("configuration", f"{found.configuration}: {found.configuration_reason}"))
    if machine and found.memory_bytes:
        here = f"{machine.device}, {machine.memory_gb:.0f} GB"
        weights = _size(found.memory_bytes) + (f" of weights as {found.dtype}" if found.dtype else " of weights")
        rows.append(("fits here", f"{_fits(found, machine)}: {weights}; here: {here}"))
        if _fits(found, machine) == "no" and found.largest_bytes and found.largest_bytes < machine.memory_gb * GB:
            largest = _size(found.largest_bytes)
            rows.append(("", f"with --enable-cpu-offload the largest component, {largest}, is there alone"))
    if found.problem:
        rows.append(("not served", found.problem))
    if found.command:
        rows.append(("serve it", found.command))
    width = max(len(label) for label, _ in rows)
    for label, value in rows:
        yield f"{label.ljust(width)}  {one_line(value)}"
    if found.components:
        yield "\ncomponents"
        names = [(one_line(each["name"]), one_line(each["class"]), _weights(each)) for each in found.components]
        widths = [max(map(len, column)) for column in zip(*names, strict=True)]
        for cells in names:
            yield "  " + "  ".join(cell.ljust(size) for cell, size in zip(cells, widths, strict=True)).rstrip()


def _fits(found: Inspected, machine: Machine) -> str:
    return fits((found.memory_bytes or 0) / GB, machine.memory_gb)


def _weights(component: Mapping[str, Any]) -> str:
    if "bytes" not in component:
        return ""
    files = len(component["files"])
    shards = f", {files} files" if files > 1 else ""
    return f"{_size(component['bytes'])} {'/'.join(component['dtypes'])}{shards}"


def _size(number: int) -> str:
    return in_gb(number / GB) if number >= MB else f"{number / 1000:.0f} KB"


def _shown(name: str, value: Any) -> str:
    if name == "bytes":
        return _size(value)
    if name == "parameters":
        return in_billions(float(f"{value / GB:.3g}"))
    if name == "trained_steps":
        return f"{value} steps"
    if name == "dtypes":
        return ", ".join(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{part} {count}" for part, count in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)
