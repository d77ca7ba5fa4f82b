"""`docs/models.md`: the table of pipeline classes, written by what the conformance suite finds, and read by its tests.

`make models` writes it; `python -m tools.models_table --write NAME ...` writes the rows of some classes anew.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from tests.support.families import ENTRIES

PAGE = Path(__file__).resolve().parents[1] / "docs" / "models.md"
BEGIN, END = "<!-- rows: written by make models -->\n", "<!-- end of rows -->\n"
HEAD = (
    "| family | class | cache_dit.serve's name | LoRA | tasks | with the cache | why not, and what it needs |\n"
    "|---|---|---|---|---|---|---|\n"
)
OLD_NAMES = {
    "CogView3": "CogView3+",
    "CogView4": "CogView4",
    "Flux": "Flux / Flux.1",
    "HunyuanDiT": "HunyuanDiT",
    "HunyuanVideo": "HunyuanVideo",
    "LTX": "LTX-Video",
    "Mochi": "Mochi",
    "QwenImage": "Qwen-Image",
    "Wan": "Wan / Wan 2.2",
}
"""What the README of cache-dit's own server called its families, by how their classes' names begin."""
ALWAYS_LARGE = frozenset({"HiDreamImage", "Kandinsky5T2I"})
"""Classes that draw a megapixel whatever they are asked, unless :func:`tests.support.small.draw_small` was called."""


@dataclass(frozen=True)
class Row:
    """What the table says of a class."""

    tasks: str
    state: str
    note: str


def variant_of(name: str) -> str:
    """A class, and which of its models where there are two."""
    _, _, version = name.partition("-")
    return f"`{ENTRIES[name]['class']}`" + (f" {version}" if version else "")


def rows() -> dict[str, Row]:
    """The table's rows by the names of `families.json`."""
    text = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    cells = [[cell.strip() for cell in line.strip("| \n").split("|")] for line in text.splitlines()[2:]]
    by_class = {row[1]: Row(*row[4:]) for row in (cell + [""] * (7 - len(cell)) for cell in cells)}
    return {name: by_class[variant_of(name)] for name in ENTRIES if variant_of(name) in by_class}


def row_of(name: str, folder: Path) -> Row:
    """What the suite finds of a class.

    Raises:
        AssertionError: the class is served, and not as it must be.
    """
    from tests.support.conformance import find

    found = find(name, folder)
    needs = [f"needs {package}" for package in ENTRIES[name].get("requires", ()) if package not in (found.reason or "")]
    reason = re.sub(r"; this version serves .*", "", found.reason or "").replace("|", "/")
    return Row(", ".join(found.tasks), found.state, "; ".join([*filter(None, [reason]), *needs]))


def write(found: dict[str, Row]) -> None:
    """Put rows into the page, in the place of those of the same classes."""
    known = rows() | found
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    names = sorted(known, key=lambda name: (ENTRIES[name]["family"].lower(), list(ENTRIES).index(name)))
    lines = []
    for name in names:
        row = known[name]
        cells = (
            ENTRIES[name]["family"],
            variant_of(name),
            _old_name(name),
            _lora(name),
            row.tasks,
            row.state,
            row.note,
        )
        lines.append(f"| {' | '.join(cells)} |\n")
    PAGE.write_text(before + BEGIN + HEAD + "".join(lines) + END + rest.partition(END)[2], encoding="utf-8")


def _lora(name: str) -> str:
    """Whether diffusers can put a LoRA on a class."""
    import diffusers

    from cache_dit_serving.pipeline.lora import lora_components

    return "yes" if lora_components(getattr(diffusers, ENTRIES[name]["class"]), ENTRIES[name]["components"]) else ""


def _old_name(name: str) -> str:
    return next((old for begins, old in OLD_NAMES.items() if name.startswith(begins)), "")


def names_of(group: Literal["pictures", "guided", "video", "apart"]) -> list[str]:
    """The entries of a test module."""
    return [name for name in ENTRIES if _group(name) == group]


def _group(name: str) -> str:
    entry = ENTRIES[name]
    if name in ALWAYS_LARGE or entry.get("requires") or "guardrail" in str(entry["components"].get("safety_checker")):
        return "apart"
    if entry["output"]["field"] not in ("images", "image"):
        return "video"
    return "pictures" if entry["task"] in ("t2i", "class2image") else "guided"


def main(names: list[str], *, writing: bool) -> None:
    from tests.support.conformance import gone_wrong
    from tests.support.small import draw_small
    from tests.support.vision import stand_in_for_guardrail

    stand_in_for_guardrail()
    draw_small()
    for name in names or list(ENTRIES):
        with tempfile.TemporaryDirectory() as folder:
            try:
                row = row_of(name, Path(folder))
            except Exception as error:  # noqa: BLE001 (the next class is tried too)
                print(f"{name}: {gone_wrong(error)}", file=sys.stderr, flush=True)
                continue
        if writing:
            write({name: row})
        print(f"{name}\t{json.dumps(asdict(row))}", flush=True)


if __name__ == "__main__":
    from tests.support.vision import add_torchvision

    add_torchvision()
    main([name for name in sys.argv[1:] if name != "--write"], writing="--write" in sys.argv)
