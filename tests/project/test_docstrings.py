"""Docstrings that name a thing: a noun phrase or an imperative, in plain words.

`python -m tests.project.test_docstrings [FOLDER ...]` lists the others, by default those outside `REWRITTEN`.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.server import ROOT

PACKAGE = ROOT / "src/cache_dit_serving"
REWRITTEN = (
    ".",
    "api",
    "caching",
    "config",
    "engine",
    "jobs",
    "measure",
    "media",
    "model_folder",
    "pipeline",
    "planning",
    "ranks",
    "schemas",
)
"""Folders of the package whose docstrings are held to the rule."""
CLAUSES = "how that what whatever when whenever where wherever whether which whichever who whoever whom whose why"
PREPOSITIONS = (
    "about above across after against along among around as at before behind below beneath beside besides between "
    "beyond but by despite down during except for from in inside into like near of off on onto out outside over past "
    "per since through throughout till to toward towards under until unless up upon via with within without"
)
OPENING = re.compile(rf"\W*(?:{'|'.join(f'{CLAUSES} {PREPOSITIONS}'.split())})(?![\w-])", re.IGNORECASE)
BANNED = re.compile(
    r"\b(?:(?:ha[sd]|have|having|no) (?:a |no )?say|(?:is|are|was|were|be) told|no match for|in silence"
    r"|nobody|perhaps)\b",
    re.IGNORECASE,
)


def docstrings_of(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of each string that stands as a statement: of modules, classes, functions and attributes."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value


def fault_of(docstring: str) -> str | None:
    """The words by which a docstring breaks the rule; None if it keeps to it."""
    found = OPENING.match(docstring) or BANNED.search(" ".join(docstring.split()))
    return found[0].strip() if found else None


def faults_in(files: Iterator[Path]) -> Iterator[str]:
    """`FILE:LINE: WORDS: FIRST LINE` of each docstring that breaks the rule."""
    for file in sorted(files):
        for line, text in docstrings_of(file.read_text(encoding="utf-8")):
            if fault := fault_of(text):
                yield f"{file.relative_to(ROOT)}:{line}: {fault}: {text.strip().splitlines()[0]}"


def folder_of(file: Path) -> str:
    """Folder of the package that holds a file; `.` for the package's own files and for service.py."""
    inside = file.relative_to(PACKAGE).parts if file.is_relative_to(PACKAGE) else ()
    return inside[0] if len(inside) > 1 else "."


def files_of(folder: str) -> Iterator[Path]:
    """Python files of one folder, named as by `folder_of`."""
    return (file for file in [ROOT / "service.py", *PACKAGE.rglob("*.py")] if folder_of(file) == folder)


@pytest.mark.parametrize("folder", REWRITTEN)
def test_a_docstring_is_a_noun_phrase_or_an_imperative(folder: str) -> None:
    assert any(files_of(folder)), "no such folder"
    assert list(faults_in(files_of(folder))) == []


@pytest.mark.parametrize(
    ("docstring", "fault"),
    [
        ("Of a job during which the server ended.", "Of"),
        ("`Whether` it runs.", "`Whether"),
        ("\n    By field.", "By"),
        ("Settings that had\n    a say.", "had a say"),
        ("Return whether it runs.", None),
        ("In-flight requests.", None),
        ("Forward pass of one block.", None),
        ("Poll interval, seconds.", None),
    ],
)
def test_the_rule_finds_fragments_alone(docstring: str, fault: str | None) -> None:
    assert fault_of(docstring) == fault


def test_attributes_have_docstrings_too() -> None:
    source = '"""Module."""\nLIMIT = 1\n"""Limit."""\nclass A:\n    """Class."""\n    x: int\n    """Field."""\n'
    assert [text for _, text in docstrings_of(source)] == ["Module.", "Limit.", "Class.", "Field."]


if __name__ == "__main__":
    folders = {folder_of(file) for file in [ROOT / "service.py", *PACKAGE.rglob("*.py")]}
    left = [line for name in sorted(sys.argv[1:] or folders - {*REWRITTEN}) for line in faults_in(files_of(name))]
    print(*left, sep="\n")
    print(*(f"{count:4} {file}" for file, count in Counter(line.split(":")[0] for line in left).items()), sep="\n")
    print(f"{len(left):4} in all")
