"""The embedded model, loaded once for the tests that only draw with it."""

from __future__ import annotations

import pytest

from cache_dit_serving.pipeline.protocol import Loaded
from tests.support.in_process import EMBEDDED, UNCACHED, load


@pytest.fixture(scope="session")
def embedded() -> Loaded:
    """As configured. A test that changes its pipeline, or counts what it holds, loads its own."""
    return load(EMBEDDED)


@pytest.fixture(scope="session")
def uncached() -> Loaded:
    """Configured without a cache; requests may still send cache settings."""
    return load(UNCACHED)
