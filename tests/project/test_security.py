"""SECURITY.md names tests that there are."""

from __future__ import annotations

import re

from tests.support.server import ROOT

PROMISE = re.compile(r"^\| .+ \| (`tests/.+`) \|$", re.MULTILINE)


def test_each_promise_names_tests_that_there_are() -> None:
    _, _, promises = (ROOT / "SECURITY.md").read_text(encoding="utf-8").partition("## What is promised")
    promises = promises.partition("## What is not promised")[0]
    rows = [line for line in promises.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == len(PROMISE.findall(promises)), "a promise without a test"
    named = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", promises)
    assert len(named) > len(rows)
    assert [
        f"{file}::{test}"
        for file, test in named
        if not re.search(rf"^(?:async )?def {test}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)
    ] == []
