"""Fresh processes import the folders that do without torch, and no heavy library comes with them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib

import pytest

from tests.support.server import ROOT

IMPORT_OF_PIPELINE = re.compile(r"^\s*(?:from|import) cache_dit_serving\.pipeline(?:\.(\w+))?", re.MULTILINE)
HEAVY = ("torch", "diffusers", "transformers", "cache_dit", "av")
ROOMS = (
    "api",
    "caching",
    "config",
    "engine",
    "jobs",
    "loras",
    "measure",
    "media",
    "model_folder",
    "planning",
    "schemas",
)
IMPORTER = """
import importlib, json, pkgutil, sys
rooms, heavy = map(json.loads, sys.argv[1:])
for room in rooms:
    before = {*sys.modules}
    package = importlib.import_module("cache_dit_serving." + room)
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(module.name)
    print(json.dumps([room, [name for name in heavy if name in {*sys.modules} - before]]))
"""
"""Imports the rooms one after the other, each with what those before it have not imported."""


@pytest.fixture(scope="module")
def heavy_imports() -> dict[str, list[str]]:
    """The heavy libraries that come with each room, and with none before it."""
    command = [sys.executable, "-c", IMPORTER, json.dumps(ROOMS), json.dumps(HEAVY)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=180)
    return dict(json.loads(line) for line in ran.stdout.splitlines())


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_without_torch_imports_none_of_it(room: str, heavy_imports: dict[str, list[str]]) -> None:
    assert heavy_imports[room] == []


def test_the_supervisor_imports_neither_the_model_libraries_nor_the_database() -> None:
    """BentoML imports service.py there before it starts a worker: each import makes every start longer."""
    unused = ("torch", "diffusers", "transformers", "cache_dit", "av", "sqlalchemy", "alembic")
    code = "import sys, service; print(*[name for name in sys.argv[1:] if name in sys.modules])"
    command = [sys.executable, "-c", code, *unused]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=180)
    assert ran.stdout.split() == []


def test_the_architecture_page_has_the_rooms_in_the_order_of_the_floors() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    floors = [floor.split(" | ") for contract in contracts for floor in contract.get("layers", [])]
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = re.search(r"\| floor, from the top \|.*?\n\n", page, re.DOTALL)
    assert table is not None
    rows = [re.findall(r"`(\w+)(?:\.py|/)`", row.split("|")[1]) for row in table[0].splitlines()[2:] if row]
    told = [room for row in rows for room in row if room != "service"]
    assert sorted(told) == sorted(room for floor in floors for room in floor)
    level = {room: number for number, floor in enumerate(floors) for room in floor}
    assert [level[room] for room in told] == sorted(level[room] for room in told)


@pytest.mark.parametrize("room", ["api", "engine", "jobs"])
def test_a_room_above_the_pipeline_knows_its_protocol_alone(room: str) -> None:
    files = (ROOT / "src" / "cache_dit_serving" / room).rglob("*.py")
    imported = {name for file in files for name in IMPORT_OF_PIPELINE.findall(file.read_text(encoding="utf-8"))}
    assert imported == {"protocol"}
