"""Ranks that the test process starts are forked from the warm process."""

from __future__ import annotations

import pytest

from tests.support.forked import warm_process
from tests.support.forked_ranks import start_by


@pytest.fixture(scope="session", autouse=True)
def _ranks_forked_from_the_warm_process() -> None:
    start_by(warm_process().fork_ranks)
