"""The record of the tree that the families' tests passed on: what makes it stale, and what does not."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools.verified import FILE, PAGE, ROOT, depended_on, digest, is_verified, write


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of what the families' tests depend on, as a tree that they passed on."""
    for file in [*depended_on(), PAGE]:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / file, tmp_path / file)
    write(digest(tmp_path), tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "file",
    [
        "src/cache_dit_serving/caching/checks.py",
        "src/cache_dit_serving/planning/fields/size.py",
        "src/cache_dit_serving/section.py",
        "tests/support/families.json",
        "tests/support/conformance.py",
        "tests/support/in_process.py",
        "tests/families/test_loras.py",
        "configs/allegro.yaml",
        "requirements.txt",
        "requirements-vision.txt",
    ],
)
def test_a_change_that_can_change_how_a_class_is_served_makes_it_stale(tree: Path, file: str) -> None:
    assert is_verified(tree)
    with (tree / file).open("a") as text:
        text.write("\n")
    assert not is_verified(tree)


def test_a_new_file_of_a_room_makes_it_stale(tree: Path) -> None:
    (tree / "src/cache_dit_serving/pipeline/later.py").write_text("")
    assert not is_verified(tree)


def test_a_row_of_the_table_makes_it_stale_and_the_text_around_it_does_not(tree: Path) -> None:
    page = tree / PAGE
    page.write_text(page.read_text(encoding="utf-8") + "\nMore.\n", encoding="utf-8")
    assert is_verified(tree)
    page.write_text(page.read_text(encoding="utf-8").replace("| cached |", "| uncached |", 1), encoding="utf-8")
    assert not is_verified(tree)


def test_a_page_or_a_route_leaves_it(tree: Path) -> None:
    for file in ("src/cache_dit_serving/api/routes.py", "docs/api.md", "tests/http/test_errors.py"):
        (tree / file).parent.mkdir(parents=True, exist_ok=True)
        (tree / file).write_text("")
    assert is_verified(tree)


def test_a_tree_that_changed_during_the_tests_is_not_recorded(tree: Path) -> None:
    tested = digest(tree)
    (tree / "requirements.txt").write_text("")
    with pytest.raises(SystemExit, match="has changed"):
        write(tested, tree)


def test_another_version_of_python_has_a_record_of_its_own(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (tree / FILE).read_text(encoding="utf-8")
    monkeypatch.setattr("tools.verified.PYTHON", "3.99")
    assert not is_verified(tree)
    write(digest(tree), tree)
    assert is_verified(tree)
    monkeypatch.undo()
    assert is_verified(tree)
    assert before != (tree / FILE).read_text(encoding="utf-8")


def test_the_command_says_what_to_run(tree: Path) -> None:
    modules = ("tools/__init__", "tools/verified", "tools/models_table", "tests/__init__", "tests/support/__init__")
    (tree / "tools").mkdir()
    for module in modules:
        shutil.copyfile(ROOT / f"{module}.py", tree / f"{module}.py")
    command = [sys.executable, "-m", "tools.verified"]
    assert subprocess.run(command, cwd=tree, check=False).returncode == 0
    (tree / "requirements.txt").write_text("")
    stale = subprocess.run(command, cwd=tree, check=False, capture_output=True, text=True)
    assert stale.returncode == 1
    assert "make test-families" in stale.stderr
