"""`tests/families/verified.json`: the tree that the families' tests last passed on, by the Python that ran them.

`make test-families` writes it when all of them pass. `python -m tools.verified` exits 1 where this tree is
another one for the Python that runs it.
"""

from __future__ import annotations

import argparse
import ast
import functools
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from tools.models_table import BEGIN, END

ROOT = Path(__file__).resolve().parents[1]
FILE = Path("tests/families/verified.json")
PACKAGE = Path("src/cache_dit_serving")
ROOMS = ("caching", "config", "media", "pipeline", "planning", "schemas")
"""Folders of the package that decide how a pipeline class is served."""
PINS, CONFIGURATIONS, TESTS = "requirements*.txt", "configs/*.yaml", "tests/families/*.py"
PAGE, ENTRIES = Path("docs/models.md"), Path("tests/support/families.json")
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def depended_on(root: Path = ROOT) -> list[Path]:
    """Files of a tree that the families' tests depend on, from its root, sorted.

    They are the rooms and the modules beside them that they import, the pins, the shipped configurations, the entries,
    and the tests with the modules of `tests/` that they import. The table of docs/models.md is no file of its own.
    """
    rooms = [file for room in ROOMS for file in _files(root / PACKAGE / room)]
    tests = sorted(root.glob(TESTS))
    found = {
        *rooms,
        *_beside(root, rooms),
        *root.glob(PINS),
        *root.glob(CONFIGURATIONS),
        root / ENTRIES,
        *_imported(root, tests),
    }
    return sorted(file.relative_to(root) for file in found)


def digest(root: Path = ROOT) -> str:
    """SHA-256 over those files, their names and what they hold, and the table's rows."""
    whole = hashlib.sha256((root / PAGE).read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].encode())
    for file in depended_on(root):
        whole.update(f"{file.as_posix()} {hashlib.sha256((root / file).read_bytes()).hexdigest()}\n".encode())
    return whole.hexdigest()


def is_verified(root: Path = ROOT) -> bool:
    """Whether the families' tests passed on this tree, on this version of Python."""
    return _known(root).get(PYTHON) == digest(root)


def write(tested: str, root: Path = ROOT) -> None:
    """Record that they passed.

    Args:
        tested: the tree's digest when they began.

    Raises:
        SystemExit: the tree has changed since.
    """
    if tested != digest(root):
        raise SystemExit("the tree has changed while the families' tests ran: run make test-families again")
    known = _known(root) | {PYTHON: tested}
    (root / FILE).write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _known(root: Path) -> dict[str, str]:
    """Digest by version of Python."""
    file = root / FILE
    known: dict[str, str] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return known


def _files(folder: Path) -> Iterator[Path]:
    return (file for file in folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts)


def _beside(root: Path, rooms: list[Path]) -> set[Path]:
    """Modules right in the package that the rooms import."""
    package = root / PACKAGE
    names = {name for file in rooms if file.suffix == ".py" for name in _imports(file.read_text(encoding="utf-8"))}
    parts = [name.split(".") for name in names if name.startswith(f"{package.name}.")]
    return {file for _, module, *_ in parts if (file := package / f"{module}.py").is_file()}


def _imported(root: Path, tests: list[Path]) -> set[Path]:
    """Test modules, and those of `tests/` that they import, at once or by others."""
    found: set[Path] = set()
    left = list(tests)
    while left:
        file = left.pop()
        if file in found:
            continue
        found.add(file)
        for name in _imports(file.read_text(encoding="utf-8")):
            module = root / Path(*name.split(".")).with_suffix(".py")
            if name.startswith("tests.") and module.is_file():
                left.append(module)
    return found


@functools.cache
def _imports(text: str) -> tuple[str, ...]:
    """Dotted names that a module imports, wherever in it."""
    names: list[str] = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return tuple(names)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.verified", description=__doc__)
    parser.add_argument("--digest", action="store_true", help="print this tree's digest")
    parser.add_argument("--write", metavar="DIGEST", help="record that the families' tests passed on this tree")
    asked = parser.parse_args()
    if asked.digest:
        print(digest())
    elif asked.write:
        write(asked.write)
    elif not is_verified():
        raise SystemExit(f"{FILE} is not of this tree on Python {PYTHON}: make test-families")


if __name__ == "__main__":
    main()
