"""transformers' scan of its folder of models."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from transformers.utils import import_utils

from cache_dit_serving.pipeline.model_scan import without_prefix

FOLDERS = """
from transformers.utils import import_utils
from cache_dit_serving.pipeline import model_scan
scan = import_utils.define_import_structure
before = import_utils.create_import_structure_from_path.cache_info().misses
{}
import transformers.models
assert import_utils.define_import_structure is scan
print(before, import_utils.create_import_structure_from_path.cache_info().misses - before)
"""


def folders_read(code: str) -> list[int]:
    """Number of folders that a fresh process scans for `transformers`, and then for `transformers.models`."""
    command = [sys.executable, "-W", "ignore", "-c", FOLDERS.format(code)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return [int(number) for number in ran.stdout.split()]


def test_the_folder_of_models_is_scanned_once() -> None:
    first, second = folders_read("model_scan.import_models()")
    assert first > 300
    assert second == 0


def test_transformers_still_scans_it_twice() -> None:
    _, second = folders_read("")
    assert second > 300, "transformers keeps its scan: pipeline/model_scan.py has no use any more"


def test_the_scan_that_is_taken_over_is_the_one_that_transformers_would_make() -> None:
    folder = Path(import_utils.__file__).parents[1] / "models"
    scan = import_utils.define_import_structure
    assert without_prefix(scan(folder, "models")) == scan(str(folder / "__init__.py"))
