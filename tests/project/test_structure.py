"""The tests' own structure: support apart, and no test module that another one imports."""

from __future__ import annotations

import re

from tests.support.server import ROOT

IMPORTED = re.compile(r"^\s*(?:from|import) (tests[\w.]*)", re.MULTILINE)


def test_no_test_module_imports_another() -> None:
    imports = {
        f"{file.relative_to(ROOT)}: {module}"
        for file in (ROOT / "tests").rglob("*.py")
        for module in IMPORTED.findall(file.read_text(encoding="utf-8"))
    }
    assert imports, "the pattern finds nothing"
    assert {line for line in imports if ": tests.support" not in line} == set()
