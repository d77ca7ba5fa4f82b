"""Classes that need torchvision, and those that always draw a megapixel: in a process made for them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.sample import parameters
from tools.models_table import Row, rows

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def found(request: pytest.FixtureRequest) -> dict[str, Row]:
    chosen = [item for item in request.session.items if item.path == request.path and isinstance(item, pytest.Function)]
    names = [str(item.callspec.params["name"]) for item in chosen]
    run = subprocess.run(
        [sys.executable, "-m", "tools.models_table", *names],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"src{os.pathsep}."},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    lines = [line.partition("\t") for line in run.stdout.splitlines() if "\t" in line]
    print(run.stderr[-10_000:], file=sys.stderr)
    return {name: Row(**json.loads(row)) for name, _, row in lines}


@pytest.mark.parametrize("name", parameters("apart"))
def test_a_class_is_served_as_the_table_says(name: str, found: dict[str, Row]) -> None:
    assert found.get(name, "went wrong: see the captured stderr of the first test") == rows()[name]
