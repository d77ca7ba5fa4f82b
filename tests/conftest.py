"""The server that most tests over HTTP share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.server import WARMED_UP, Server, ready, serving


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The embedded model as `make serve` serves it, ready."""
    with serving(tmp_path_factory.mktemp("server"), environ=WARMED_UP) as running:
        running.wait_for(ready)
        yield running


LONG = ("process", "ranks", "families", "benchmarks")
"""Folders whose modules take minutes: they start servers, ranks and every family."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Modules that take minutes begin first, so that no process is left with one when the others are done."""

    def turn(item: pytest.Item) -> tuple[bool, bool]:
        marked = {"slow", "bento"} & {mark.name for mark in item.iter_markers()}  # whole modules are
        return not marked, item.path.parent.name not in LONG

    items.sort(key=turn)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What tests counted, as their property of that name."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == "counts":
                terminalreporter.write_line(f"{report.nodeid}: {value}")
