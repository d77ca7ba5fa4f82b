"""Modules that modules of a tree import, at once or by others, found in their text without running it."""

from __future__ import annotations

import ast
import functools
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

DOTTED = re.compile(r"\b[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+\.?")
FROM = re.compile(r"\bfrom\s+([\w.]+)\s+import\s+([\w, ]+)")


class Modules:
    """The modules of a tree: packages at its root and in `src/`. Files are listed and read once."""

    # Paths are strings in here: hashing and joining those of pathlib takes longer than all else.
    def __init__(self, root: Path) -> None:
        self._bases = (f"{root}/src", str(root))
        self._texts: dict[str, str] = {}
        self._listed: dict[str, frozenset[str]] = {}
        self._imports: dict[str, frozenset[str]] = {}
        self._files: dict[str, list[str]] = {}

    def imported(self, modules: Iterable[Path], follow: Callable[[str], bool] = lambda _: True) -> set[Path]:
        """Return the modules and all that they import from the tree, with the `__init__.py` of each folder on the way.

        An import counts wherever it is: in a function, for types alone, or in the text of a program for another
        process. So does a dotted name in any other text, such as that of `python -m`. One that ends with a dot, to
        which the program adds a module's name, stands for all modules of its folder.

        Args:
            follow: leave out the modules, and what they alone import, whose path it refuses.

        Raises:
            ValueError: a module imports by a relative name.
        """
        found: set[str] = set()
        left = [str(module) for module in modules]
        while left:
            file = left.pop()
            if file not in found and follow(file):
                found.add(file)
                left += self._imported_by(file)
        return {Path(file) for file in found}

    def text(self, module: str) -> str:
        """Return the source of a module by its path."""
        if module not in self._texts:
            self._texts[module] = Path(module).read_text(encoding="utf-8")
        return self._texts[module]

    def _imported_by(self, module: str) -> frozenset[str]:
        if module not in self._imports:
            names = _names(self.text(module))
            self._imports[module] = frozenset(file for name in names for file in self._run_by(name))
        return self._imports[module]

    def _run_by(self, name: str) -> list[str]:
        """Files that the import of a dotted name runs. A part of it that is no module is a name within one."""
        if name not in self._files:
            self._files[name] = [file for base in self._bases for file in self._below(base, name)]
        return self._files[name]

    def _below(self, folder: str, name: str) -> Iterator[str]:
        package, *parts = name.rstrip(".").split(".")
        for part in (package, *parts):
            if part is not package and f"{part}.py" in self._names_in(folder):
                yield f"{folder}/{part}.py"
            if part not in self._names_in(folder):
                return
            folder = f"{folder}/{part}"
            if "__init__.py" in self._names_in(folder):
                yield f"{folder}/__init__.py"
        if name.endswith("."):
            yield from (f"{folder}/{each}" for each in self._names_in(folder) if each.endswith(".py"))

    def _names_in(self, folder: str) -> frozenset[str]:
        if folder not in self._listed:
            self._listed[folder] = frozenset(os.listdir(folder)) if os.path.isdir(folder) else frozenset()
        return self._listed[folder]


@functools.cache
def _names(text: str) -> frozenset[str]:
    """Dotted names that a module imports, or has in a text."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            if node.level or not node.module:
                raise ValueError(f"line {node.lineno} imports by a relative name")
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names |= set(DOTTED.findall(node.value))
            for module, listed in FROM.findall(node.value):
                names |= {module, *(f"{module}.{each.split()[0]}" for each in listed.split(",") if each.strip())}
    return frozenset(names)
