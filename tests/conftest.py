"""The server that most tests over HTTP share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.server import Server, ready, serving


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The embedded model as `make serve` serves it, ready."""
    warmed_up = {"CACHE_DIT_SERVING__SPEEDS__WARM_UP": "true"}
    with serving(tmp_path_factory.mktemp("server"), environ=warmed_up) as running:
        running.wait_for(ready)
        yield running


LONG = ("process", "runners", "families", "benchmarks")
"""Folders whose modules take minutes: they start servers, ranks and every family."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Modules that take minutes begin first, so that no process is left with one when the others are done."""

    def rank(item: pytest.Item) -> int:
        if {"slow", "bento"} & {mark.name for mark in item.iter_markers()}:
            return 0
        return 1 if item.path.parent.name in LONG else 2

    ranks: dict[Path, int] = {}
    for item in items:
        ranks[item.path] = min(ranks.get(item.path, 2), rank(item))
    items.sort(key=lambda item: ranks[item.path])  # whole modules: they share servers


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What tests counted, as their property of that name."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == "counts":
                terminalreporter.write_line(f"{report.nodeid}: {value}")
