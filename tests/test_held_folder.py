"""Temporary folders that do not outlive their processes."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from cache_dit_serving import held_folder
from cache_dit_serving.held_folder import HeldFolder, hold

HOLD = """
import sys
from cache_dit_serving import held_folder
held_folder.LONGEST_PATH = 1000
print(held_folder.HeldFolder("test").path, flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(held_folder, "ABOVE", tmp_path)
    monkeypatch.setattr(held_folder, "LONGEST_PATH", 1000)
    return tmp_path


def test_it_is_for_this_user_alone_and_goes_with_all_that_is_in_it(temporary: Path) -> None:
    folder = HeldFolder("test")
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    (folder.path / "file").write_text("a")
    folder.remove()
    folder.remove()
    assert list(temporary.iterdir()) == []


def test_one_whose_process_was_killed_is_removed_by_the_next_of_its_kind(temporary: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        left = Path(process.stdout.readline().decode().strip())
        HeldFolder("test").remove()
        assert left.exists()
        process.kill()
    HeldFolder("other").remove()
    assert left.exists()
    HeldFolder("test").remove()
    assert not left.exists()


def test_another_process_of_the_server_keeps_it(temporary: Path) -> None:
    left = temporary / f"{held_folder.prefix_of('test')}left"
    left.mkdir()
    lock = hold(left)
    HeldFolder("test").remove()
    assert left.exists()
    os.close(lock)
    HeldFolder("test").remove()
    assert not left.exists()


def test_a_path_too_long_for_a_socket_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("x" * 60)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    monkeypatch.setattr(held_folder, "LONGEST_PATH", len(str(deep)))
    folder = HeldFolder("test")
    assert folder.path.parent == tmp_path
    folder.remove()
    assert list(deep.iterdir()) == []
