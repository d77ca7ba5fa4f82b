"""A pytest plugin of `make test-verified`: a marked test reads no file of the tree that its part's hash does not cover.

Modules that a test imports count, and so do files that Python opens in the test's own process.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tools.verified import PAGE, SHARED, depended_on

OWN = {PAGE, Path("pyproject.toml"), Path("tools/files_read.py")}
"""Files of which the hash covers a part, and this one, which torch 2.13's compiler reads as it is on the stack."""
MADE = ("build", "outputs")
"""Folders of the tree that runs write."""


class Reader:
    """Checks what each test opened."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._covered: dict[str, frozenset[Path]] = {}
        self._opened: set[Path] | None = None
        sys.addaudithook(self._note)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Iterator[None]:
        if "server" in getattr(item, "fixturenames", ()):
            pytest.fail(f"uses a server, whose modules the hash does not cover: {SHARED}")
        return (yield from self._watched(item))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        return (yield from self._watched(item))

    def _watched(self, item: pytest.Item) -> Iterator[None]:
        opened: set[Path] = set()
        self._opened = opened
        try:
            yield
        finally:
            self._opened = None
        part = item.path.relative_to(self._root / "tests").parts[0]
        if part not in self._covered:
            self._covered[part] = frozenset(depended_on(part, self._root)) | OWN
        if others := {file for file in opened if self._root / file != item.path} - self._covered[part]:
            listed = ", ".join(sorted(file.as_posix() for file in others))
            pytest.fail(f"reads {listed}, which the hash of {part} does not cover: see PARTS of tools/verified.py")

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._opened is None or event != "open" or not isinstance(arguments[0], str) or arguments[2] & os.O_ACCMODE:
            return
        path = Path(os.path.abspath(arguments[0]))
        if not path.is_relative_to(self._root):
            return
        if path.suffix == ".pyc":
            path = source_of(path)
        file = path.relative_to(self._root)
        if not file.parts[0].startswith(".") and file.parts[0] not in MADE and path.is_file():
            self._opened.add(file)


def source_of(compiled: Path) -> Path:
    """Return the source of a compiled module, pytest's own too, whose name `importlib` takes for none.

    The audit hook must not raise: the code that opens the file would take that for its own fault.
    """
    name = f"{compiled.name.partition('.')[0]}.py"
    return (compiled.parent.parent if compiled.parent.name == "__pycache__" else compiled.parent) / name


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Reader(config.rootpath), "files-read")
