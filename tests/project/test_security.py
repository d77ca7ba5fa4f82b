"""SECURITY.md names tests that there are: one or more for each promise, and for each finding of the attack."""

from __future__ import annotations

import re

import pytest

from tests.support.server import ROOT

PROMISES, FINDINGS = "## What is promised", "## Findings of the attack of 2026-11-27"
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def rows_of(title: str) -> list[str]:
    """The rows of the table below a heading, without its head."""
    _, found, below = (ROOT / "SECURITY.md").read_text(encoding="utf-8").partition(f"{title}\n")
    assert found, title
    return [line for line in below.partition("\n## ")[0].splitlines() if line.startswith("| ")][1:]


@pytest.mark.parametrize("title", [PROMISES, FINDINGS])
def test_each_row_names_tests_that_there_are(title: str) -> None:
    for row in rows_of(title):
        tests = row.rpartition(" | ")[2].removesuffix(" |").split(", ")
        named = [NAMED.fullmatch(test) for test in tests]
        assert all(named), row
        for match in filter(None, named):
            file, test = match.groups()
            assert re.search(rf"^(?:async )?def {test}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), (
                test
            )


def test_all_28_findings_are_there_in_their_order() -> None:
    assert [int(row.split(" | ")[0].removeprefix("| ")) for row in rows_of(FINDINGS)] == list(range(1, 29))
