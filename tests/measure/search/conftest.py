"""A search on a synthetic drawer, in a folder of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.searches import Run
from tests.support.synthetic import Synthetic


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path, Synthetic())
