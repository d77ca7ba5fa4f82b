"""The server that most tests over HTTP share."""

from __future__ import annotations

import gc
import logging
import os
import random
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.server import AS_SERVED, Server, ready, serving


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The embedded model as `make serve` serves it, ready."""
    with serving(tmp_path_factory.mktemp("server"), environ=AS_SERVED) as running:
        running.wait_for(ready)
        yield running


@pytest.fixture(autouse=True)
def _lines_reach_the_next_test() -> Iterator[None]:
    """Set back the level of the project's loggers; fail a test that disables them, as BentoML does when it starts."""
    logger = logging.getLogger("cache_dit_serving")
    level = logger.level
    yield
    logger.setLevel(level)
    assert not logger.disabled, "this test disables the loggers of all that follow"


SHUFFLED = os.environ.get("SHUFFLED", "")
"""Seed of an order of chance; the modules' own order without."""
LONG = ("process", "ranks", "families", "benchmarks")
"""Folders whose modules take minutes: they start servers, ranks and every family."""


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Spare the garbage collector the imports, and the million objects that stay after them."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Modules that take minutes begin first, so that no process is left with one when the others are done.

    Raises:
        UsageError: several tests have one id; xdist 3.8 would run one of them, and say nothing of the others.
    """
    same = [name for name, count in Counter(item.nodeid for item in items).items() if count > 1]
    if same:
        raise pytest.UsageError(f"several tests are called {', '.join(same)}")

    def turn(item: pytest.Item) -> tuple[bool, bool]:
        marked = {"slow", "bento"} & {mark.name for mark in item.iter_markers()}  # whole modules are, most of them
        return item.path.parent.name not in LONG, not marked

    items.sort(key=turn)
    if SHUFFLED:
        _shuffle(items, random.Random(SHUFFLED))


def _shuffle(items: list[pytest.Item], chance: random.Random) -> None:
    """Put modules, and the tests of each, into an order of chance: the same one in each test process."""
    modules: dict[Path, list[pytest.Item]] = {}
    for item in items:
        modules.setdefault(item.path, []).append(item)
    shuffled = list(modules.values())
    chance.shuffle(shuffled)
    for tests in shuffled:
        chance.shuffle(tests)
    items[:] = [item for tests in shuffled for item in tests]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """For `--dist loadfile`: by the folders' own way."""
    if config.getvalue("dist") != "loadfile":
        return None
    from tests.support.spread import SharingLast  # without xdist, nothing of it is imported

    return SharingLast(config, log)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What tests counted, as their property of that name."""
    if SHUFFLED:
        terminalreporter.write_line(f"in the order of SHUFFLED={SHUFFLED}")
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            if name == "counts":
                terminalreporter.write_line(f"{report.nodeid}: {value}")
