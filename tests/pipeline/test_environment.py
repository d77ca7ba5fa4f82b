"""The first import of the libraries."""

from __future__ import annotations

import gc
import importlib
import subprocess
import sys

import pytest

from cache_dit_serving.pipeline.environment import first_import

LOOK = """
import gc
import sys
from cache_dit_serving.pipeline.environment import quiet_libraries
runs = []
gc.callbacks.append(lambda phase, info: runs.append(phase))
quiet_libraries()
assert "torch" in sys.modules
print(len(runs), gc.isenabled(), gc.get_freeze_count())
"""


@pytest.mark.verified
def test_the_garbage_collector_is_spared_the_libraries() -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", LOOK], capture_output=True, text=True, check=True)
    runs, enabled, frozen = done.stdout.split()
    assert int(runs) < 20  # it runs hundreds of times otherwise
    assert enabled == "True"
    assert int(frozen) > 100_000


def test_the_garbage_collector_runs_again_when_an_import_fails() -> None:
    with pytest.raises(ModuleNotFoundError), first_import("no_such_library"):
        importlib.import_module("no_such_library")
    assert gc.isenabled()
    gc.unfreeze()  # the objects of this test process


def test_what_has_been_imported_leaves_the_garbage_collector_alone() -> None:
    frozen = gc.get_freeze_count()
    with first_import("sys"):
        assert gc.isenabled()
    assert gc.get_freeze_count() == frozen
