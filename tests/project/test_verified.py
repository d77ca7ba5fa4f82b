"""The record of the trees that the marked tests of each part passed on: what makes it stale, and what does not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tools.files_read import source_of
from tools.verified import FILE, MARK, PAGE, PARTS, ROOT, depended_on, digests, marked, run, unverified, write


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the parts depend on, without the embedded model's weights, as a tree that they passed on."""
    folder = tmp_path_factory.mktemp("tree")
    files = {file for part in PARTS for file in depended_on(part) if file.suffix != ".safetensors"}
    for file in {*files, PAGE, Path("pyproject.toml")}:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / file, folder / file)
    write(digests(root=folder), folder)
    assert unverified(root=folder) == []
    return folder


@pytest.fixture
def tree(whole: Path) -> Iterator[Path]:
    """That tree; what a test writes into the record is taken back."""
    before = (whole / FILE).read_bytes()
    yield whole
    (whole / FILE).write_bytes(before)


@contextmanager
def changed(file: Path, text: str | None = None) -> Iterator[None]:
    """A file with another text; by default, a blank line at its end."""
    before = file.read_text(encoding="utf-8") if file.exists() else None
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{before or ''}\n" if text is None else text, encoding="utf-8")
    try:
        yield
    finally:
        if before is None:
            file.unlink()
        else:
            file.write_text(before, encoding="utf-8")


ALL = tuple(PARTS)


@pytest.mark.parametrize(
    ("file", "parts"),
    [
        ("src/cache_dit_serving/caching/checks.py", ALL),
        ("src/cache_dit_serving/planning/fields/size.py", ALL),
        ("src/cache_dit_serving/section.py", ALL),
        ("src/cache_dit_serving/checkpoints/families.py", ALL),
        ("src/cache_dit_serving/config/footprints.json", ALL),
        ("src/cache_dit_serving/embedded/emoji-flux/model_index.json", ALL),
        ("tests/conftest.py", ALL),
        ("tests/support/families.json", ALL),
        ("requirements.txt", ALL),
        ("requirements-vision.txt", ALL),
        ("src/cache_dit_serving/engine/capabilities.py", ALL),
        ("tests/support/conformance.py", ("families", "pipeline", "measure")),
        ("tests/support/sample.py", ("families",)),
        ("tests/families/test_pictures.py", ("families",)),
        ("configs/allegro.yaml", ("families", "pipeline", "measure", "benchmarks")),
        ("tests/support/lora_formats.py", ("pipeline",)),
        ("tests/pipeline/conftest.py", ("pipeline",)),
        ("tests/pipeline/test_compiling.py", ("pipeline",)),
        ("src/cache_dit_serving/measure/search/front.py", ("measure", "benchmarks")),
        ("src/cache_dit_serving/measure/page/page.html.jinja", ("measure",)),
        ("tests/measure/search/test_kinds.py", ("measure",)),
        ("benchmarks/gpu_ranks.py", ("benchmarks",)),
        ("benchmarks/models/qwen-image.json", ("benchmarks",)),
        ("src/cache_dit_serving/api/routes.py", ("benchmarks",)),
        ("service.py", ("benchmarks",)),
    ],
)
def test_a_file_makes_the_parts_stale_whose_verdict_it_can_change(
    tree: Path, file: str, parts: tuple[str, ...]
) -> None:
    with changed(tree / file):
        assert unverified(root=tree) == list(parts)


@pytest.mark.parametrize(
    "file",
    [
        "src/cache_dit_serving/api/static/ui/stage.js",
        "docs/api.md",
        "tests/http/test_errors.py",
        "tests/pipeline/test_introspect.py",
        "tests/snapshots/openapi.json",
    ],
)
def test_a_page_or_a_test_of_every_run_leaves_all(tree: Path, file: str) -> None:
    with changed(tree / file, ""):
        assert unverified(root=tree) == []


def test_a_row_of_the_table_makes_its_readers_stale_and_the_text_around_it_does_not(tree: Path) -> None:
    text = (tree / PAGE).read_text(encoding="utf-8")
    with changed(tree / PAGE, f"{text}\nMore.\n"):
        assert unverified(root=tree) == []
    with changed(tree / PAGE, text.replace("| cached |", "| uncached |", 1)):
        assert unverified(root=tree) == [part for part in PARTS if Path("tools/models_table.py") in depended_on(part)]


def test_pytests_settings_make_all_stale_and_the_others_of_that_file_do_not(tree: Path) -> None:
    text = (tree / "pyproject.toml").read_text(encoding="utf-8")
    with changed(tree / "pyproject.toml", text.replace("line-length = 120", "line-length = 100")):
        assert unverified(root=tree) == []
    with changed(tree / "pyproject.toml", text.replace('    "error",\n', "", 1)):
        assert unverified(root=tree) == [*PARTS]


@pytest.mark.parametrize(
    "line",
    [
        "import cache_dit_serving.pipeline.later",
        "from cache_dit_serving.pipeline import later",
        "def lazy() -> None:\n    from cache_dit_serving.pipeline.later import name",
        'CODE = """\nfrom cache_dit_serving.pipeline import later as it\n"""',
        'WORDS = ["-m", "cache_dit_serving.pipeline.later"]',
        'NAME = f"cache_dit_serving.pipeline.{FILE}"',
    ],
)
def test_an_import_is_found_wherever_it_is(tree: Path, line: str) -> None:
    later = tree / "src/cache_dit_serving/pipeline/later.py"
    test = tree / "tests/families/test_pictures.py"
    with changed(test, f"{test.read_text(encoding='utf-8')}\n{line}\n"), changed(later, "name = 1\n"):
        before = digests(["families"], tree)
        with changed(later, "name = 2\n"):
            assert digests(["families"], tree) != before


def test_every_marked_test_is_in_a_part() -> None:
    """A module of another folder that had the marker would never run."""
    having = {file for file in (ROOT / "tests").rglob("test_*.py") if MARK.search(file.read_text(encoding="utf-8"))}
    assert having - {file for part in PARTS for file in marked(part)} == set()
    assert {part: len(marked(part)) for part in PARTS if not marked(part)} == {}, "parts without a marked test"


def test_what_changed_during_the_tests_is_not_recorded(tree: Path) -> None:
    tested = digests(["pipeline"], tree)
    with changed(tree / "requirements.txt"), pytest.raises(SystemExit, match="tests of pipeline ran"):
        write(tested, tree)


def test_another_version_of_python_has_a_record_of_its_own(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = json.loads((tree / FILE).read_text(encoding="utf-8"))
    monkeypatch.setattr("tools.verified.PYTHON", "3.99")
    assert unverified(root=tree) == [*PARTS]
    write(digests(["measure"], tree), tree)
    assert unverified(root=tree) == [part for part in PARTS if part != "measure"]
    monkeypatch.undo()
    assert unverified(root=tree) == []
    assert before != json.loads((tree / FILE).read_text(encoding="utf-8"))


SETTINGS = '[tool.pytest.ini_options]\nmarkers = ["verified: dear"]\n'
TESTS = f"""
from pathlib import Path
import pytest

def test_of_every_run():
    assert False

@pytest.mark.{"verified"}
def test_dear():
    {{}}
"""


READS_OTHERS = "Path('docs/page.txt').read_text(), __import__('.'.join(['docs', 'module']))"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("assert Path('tests/small/beside.txt').read_text() == 'text'", ""),
        ("assert False", "assert False"),
        (READS_OTHERS, "reads docs/module.py, docs/page.txt, which the hash of small does not cover"),
    ],
    ids=["passes", "fails", "reads others"],
)
def test_a_part_is_recorded_when_its_marked_tests_pass_and_read_what_its_hash_covers(
    tmp_path: Path, body: str, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    for file in ("tests/small/beside.txt", "docs/page.txt"):
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_text("text")
    for file in ("tests/conftest.py", "tests/small/__init__.py", "docs/module.py"):
        (tmp_path / file).touch()
    (tmp_path / "pyproject.toml").write_text(SETTINGS)
    (tmp_path / "tests/small/test_small.py").write_text(TESTS.format(body))
    assert run(["small"], ["-p", "no:cacheprovider", "-p", "no:schemathesis"], tmp_path) == (1 if said else 0)
    assert said in capfd.readouterr().out
    assert unverified(["small"], tmp_path) == (["small"] if said else [])


def test_the_command_says_what_to_run(tree: Path) -> None:
    modules = ("tools/__init__", "tools/verified", "tools/imported", "tools/models_table")
    for module in modules:
        if not (tree / f"{module}.py").exists():
            shutil.copyfile(ROOT / f"{module}.py", tree / f"{module}.py")
    command = [sys.executable, "-m", "tools.verified"]
    assert subprocess.run(command, cwd=tree, check=False).returncode == 0
    with changed(tree / "tests/support/lora_formats.py"):
        assert subprocess.run([*command, "measure"], cwd=tree, check=False).returncode == 0
        stale = subprocess.run(command, cwd=tree, check=False, capture_output=True, text=True)
    assert stale.returncode == 1
    assert stale.stderr.endswith(": pipeline: make test-verified\n")


@pytest.mark.parametrize(
    "name", ["one.cpython-311.pyc", "one.cpython-311-pytest-9.2.0.pyc", "one.cpython-311.opt-1.pyc"]
)
def test_the_source_of_a_compiled_module_is_known_whoever_compiled_it(name: str) -> None:
    assert source_of(Path("tests/__pycache__") / name) == Path("tests/one.py")
