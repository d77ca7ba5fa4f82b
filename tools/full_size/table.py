"""The table of footprints in docs/models.md."""

from __future__ import annotations

from collections.abc import Iterator

from cache_dit_serving.config.footprints import WAYS, Footprint, Way, footprints, gigabytes, unknown_footprints
from tools.full_size import models
from tools.full_size.models import SHAPES
from tools.models_table import PAGE

BEGIN, END = "<!-- footprints: written by make full-size -->\n", "<!-- end of footprints -->\n"
CARDS_GB = (24, 48, 80, 141)
SIGN = "†"
"""Mark of a row or component whose shapes are not verified."""
HEAD = (
    "| configuration | size | TFLOP a step | weights, GB: in all, of each component | peak, GB: as it is, 8-bit, "
    "offload, both | " + " | ".join(f"{card} GB" for card in CARDS_GB) + " | within a step |\n" + "|---" * 9 + "|\n"
)
NAMES = {Way(): "as it is", Way(True): "8-bit", Way(offload=True): "offload", Way(True, True): "both"}


def write_table() -> None:
    """Put the table into the page."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(before + BEGIN + table() + END + rest.partition(END)[2], encoding="utf-8")


def written_table() -> str:
    """Return the table as the page has it."""
    return PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]


def table() -> str:
    """Return the table of the footprints that the package has, and the list of those that are unknown."""
    known = footprints()
    rows = "".join(f"| {' | '.join(_cells(known[name]))} |\n" for name in sorted(known))
    unknown = "".join(f"- `{name}`: {reason}\n" for name, reason in sorted(unknown_footprints().items()))
    return (
        f"{HEAD}{rows}\n{SIGN} Shapes of which some or all values are written from memory, or are a class's "
        f"defaults: the list of sources below says which.\n\nWithout a row:\n\n{unknown}\n"
        f"Shapes are from:\n\n{_sources()}"
    )


def _cells(found: Footprint) -> Iterator[str]:
    yield f"`{found.name}`" + (f" {SIGN}" if found.unverified else "")
    frames = f" x {found.frames}" if found.frames > 1 else ""
    steps = f", {found.steps} steps" if found.steps else ""
    yield f"{found.width} x {found.height}{frames}{steps}"
    yield "" if found.flop_per_step is None else f"{found.flop_per_step / 1e12:.3g}"
    parts = ", ".join(
        f"{name}{SIGN if name in found.unverified else ''} {gigabytes(size)}" for name, size in found.weights.items()
    )
    yield f"{gigabytes(sum(found.weights.values()))}: {parts}"
    peaks = ", ".join(gigabytes(found.peak_bytes(way)) for way in WAYS)
    yield peaks if found.not_drawn is None else f"{peaks}, of weights alone"
    for card in CARDS_GB:
        way = found.fitting(card * 10**9)
        yield ("no" if way is None else NAMES[way]) if found.not_drawn is None else "unknown"
    if found.not_drawn is not None:
        yield f"not drawn: {_with_files(found.not_drawn)}"
    else:
        yield "; ".join(map(_with_files, found.findings))


def _with_files(text: str) -> str:
    """Return a text with the library's file after `at` in italics: a file in backticks is one of this project."""
    before, at, place = text.partition(" at ")
    return f"`{before}`{at}*{place}*" if at else text


def _sources() -> str:
    """Return the list of the shapes' sources, each with the components that it is for."""
    found: dict[str, set[str]] = {}
    for model, entry in SHAPES["models"].items():
        for name, source in models.sources(model).items():
            part = entry["components"][name]
            found.setdefault(source, set()).add(part if isinstance(part, str) else f"{name} of {model}")
    return "".join(f"- {source}: {', '.join(sorted(parts))}\n" for source, parts in sorted(found.items()))
