"""Classes that make videos and sounds: what docs/models.md says of each is what becomes of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.sample import parameters
from tools.models_table import row_of, rows

# Tiny weights and old families warn of much, none of it this project's.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]


@pytest.mark.parametrize("name", parameters("video"))
def test_a_class_is_served_as_the_table_says(name: str, tmp_path: Path) -> None:
    assert row_of(name, tmp_path / name) == rows()[name]
