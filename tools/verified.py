"""`tests/verified.json`: the trees that the marked tests of each part last passed on, by the Python that ran them.

`make test` leaves out the tests with the marker `verified`, which cost the most. `make test-verified` runs those of
each part whose files have changed since, and writes the record. `python -m tools.verified` exits 1 where there is one.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

from tools.imported import Modules
from tools.models_table import BEGIN, END

ROOT = Path(__file__).resolve().parents[1]
FILE = Path("tests/verified.json")
PARTS: dict[str, tuple[str, ...]] = {
    "families": ("configs/*.yaml",),
    "pipeline": ("configs/*.yaml",),
    "measure": ("configs/*.yaml",),
    "benchmarks": ("benchmarks/models/*.json", "configs/*.yaml", "service.py", "src/cache_dit_serving/**/*.py"),
}
"""Parts by their folder of `tests/`, and the files of each that no import shows. `benchmarks` starts a server."""
READ = ("requirements*.txt", "src/cache_dit_serving/embedded/**/*")
"""Files that each part reads: the pins and the embedded model."""
MARK = re.compile(r"\bmark\.verified\b")
SHARED = Path("tests/conftest.py")
"""Its text counts and its imports do not: they are those of the `server` fixture, which no marked test uses."""
TABLE, PAGE = Path("tools/models_table.py"), Path("docs/models.md")
"""The table's rows count where the module that reads them does; the page around them does not."""
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def marked(part: str, root: Path = ROOT) -> list[Path]:
    """Test modules of a part that have the marker, or import it from another module of `tests/`, sorted."""
    return _marked(part, root, Modules(root))


def depended_on(part: str, root: Path = ROOT) -> list[Path]:
    """Files of a tree that decide the verdict of a part's marked tests, from its root, sorted.

    They are the test modules, what they import from the tree, the files beside these modules, and those that it reads.
    """
    return _depended_on(part, root, Modules(root))


def digests(parts: Iterable[str] = PARTS, root: Path = ROOT) -> dict[str, str]:
    """SHA-256 by part over those files, their names and what they hold, pytest's settings, and the table's rows."""
    modules = Modules(root)
    settings = json.dumps(tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"])
    held = functools.cache(lambda file: hashlib.sha256((root / file).read_bytes()).hexdigest())
    found = {}
    for part in parts:
        files = _depended_on(part, root, modules)
        lines = [settings, *(f"{file.as_posix()} {held(file)}" for file in files)]
        if TABLE in files:
            lines.append((root / PAGE).read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0])
        found[part] = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    return found


def unverified(parts: Iterable[str] = PARTS, root: Path = ROOT) -> list[str]:
    """Those of the parts whose marked tests did not pass on this tree, on this version of Python."""
    known = _known(root)
    return [part for part, now in digests(parts, root).items() if known.get(part, {}).get(PYTHON) != now]


def write(tested: dict[str, str], root: Path = ROOT) -> None:
    """Record that they passed.

    Args:
        tested: digest by part when they began.

    Raises:
        SystemExit: the tree has changed since.
    """
    now = digests(tested, root)
    if changed := [part for part, before in tested.items() if before != now[part]]:
        raise SystemExit(f"the tree has changed while the tests of {', '.join(changed)} ran: run them again")
    known = _known(root)
    for part, passed in tested.items():
        known.setdefault(part, {})[PYTHON] = passed
    (root / FILE).write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def run(parts: Iterable[str], options: list[str], root: Path = ROOT) -> int:
    """Run the marked tests of parts, all in one run, and record those parts if they pass; returns pytest's status."""
    tested = digests(parts, root)
    tests = [str(file.relative_to(root)) for part in tested for file in marked(part, root)]
    if not tests:
        print(f"all parts are verified on this tree and Python {PYTHON}")
        return 0
    command = [sys.executable, "-m", "pytest", "-p", "tools.files_read", *options, "-m", "verified", *tests]
    path = os.pathsep.join(
        filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
    )  # the plugin's, wherever the tree is
    status = subprocess.run(command, cwd=root, env=os.environ | {"PYTHONPATH": path}, check=False).returncode
    if status == 0:
        write(tested, root)
    return status


def _marked(part: str, root: Path, modules: Modules) -> list[Path]:
    def has_it(test: Path) -> bool:
        own = modules.imported([test], lambda file: file.startswith(f"{root}/tests/"))
        return any(marks(str(file)) for file in own)

    marks = functools.cache(lambda file: bool(MARK.search(modules.text(file))))

    return sorted(file for file in (root / "tests" / part).rglob("test_*.py") if has_it(file))


def _depended_on(part: str, root: Path, modules: Modules) -> list[Path]:
    tests = _marked(part, root, modules)
    folders = {folder for file in tests for folder in file.parents if folder.is_relative_to(root / "tests")}
    around = {folder / name for folder in folders for name in ("__init__.py", "conftest.py")}
    python = modules.imported({*tests, *(file for file in around if file.is_file())} - {root / SHARED})
    beside = (file for folder in {module.parent for module in python} for file in folder.iterdir())
    data = (file for pattern in (*PARTS.get(part, ()), *READ) for file in root.glob(pattern))
    found = {*python, root / SHARED, *(file for file in beside if file.suffix not in {".py", ".pyc"}), *data}
    return sorted(file.relative_to(root) for file in found if file.is_file() and file != root / FILE)


def _known(root: Path) -> dict[str, dict[str, str]]:
    """Digest by part and version of Python."""
    file = root / FILE
    known: dict[str, dict[str, str]] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return known


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.verified", description=__doc__)
    parser.add_argument(
        "parts", nargs="*", choices=[[], *PARTS], metavar="PART", help=f"all if none: {', '.join(PARTS)}"
    )
    parser.add_argument(
        "--run", metavar="OPTIONS", help="run the parts named, else those not verified; pytest's options"
    )
    asked = parser.parse_args()
    if asked.run is not None:
        raise SystemExit(run(asked.parts or unverified(), shlex.split(asked.run)))
    if stale := unverified(asked.parts or PARTS):
        raise SystemExit(f"not verified on this tree and Python {PYTHON}: {', '.join(stale)}: make test-verified")


if __name__ == "__main__":
    main()
