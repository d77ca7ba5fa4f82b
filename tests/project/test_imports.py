"""A fresh process imports the folders that do without torch, and no heavy library comes with them."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "diffusers", "transformers", "cache_dit", "av")
IMPORTER = """
import importlib, pkgutil, sys
package = importlib.import_module(sys.argv[1])
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    importlib.import_module(module.name)
print(*[name for name in sys.argv[2:] if name in sys.modules])
"""


@pytest.mark.parametrize("room", ["api", "caching", "config", "engine", "jobs", "media", "planning", "schemas"])
def test_a_room_without_torch_imports_none_of_it(room: str) -> None:
    command = [sys.executable, "-c", IMPORTER, f"cache_dit_serving.{room}", *HEAVY]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert ran.stdout.split() == []
