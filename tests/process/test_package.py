"""The wheel: built through its source distribution, installed away from the repository, and used by its commands."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement
from PIL import Image

from tests.support.checkout import copy_of_sources
from tests.support.commands import commands_of
from tests.support.environments import UV, empty_environment, pip_for, places_of_pip
from tests.support.server import ROOT, UNWARMED, bentoml_serving, ready

pytestmark = pytest.mark.bento

UV_TOOL = (str(UV), "tool", "install")
PIPX = "pipx==1.18.4"
ENVIRON = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built of the tracked and new files alone."""
    sources, built = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("built")
    copy_of_sources(sources, leave_out=("tests", "docs"))
    subprocess.run([UV, "build", "--quiet", "--out-dir", built, sources], check=True)
    (wheel,) = built.glob("*.whl")
    return wheel


def by_uv(folder: Path, *words: str) -> Path:
    """Install a tool by `uv tool install`; return the folder of its commands.

    Args:
        folder: The tool's environment comes to lie in it.
    """
    places = {"UV_TOOL_DIR": str(folder / "tools"), "UV_TOOL_BIN_DIR": str(folder / "bin")}
    asked = [*UV_TOOL, "--quiet", "--python", sys.executable, *words]
    subprocess.run(asked, env=ENVIRON | places_of_pip() | places, cwd=folder, check=True, timeout=500)
    return folder / "bin"


def by_pipx(folder: Path, *words: str) -> Path:
    """Install a tool by `pipx install`; return the folder of its commands. pipx itself is run from uv's cache."""
    places = {"PIPX_HOME": str(folder / "pipx"), "PIPX_SHARED_LIBS": str(folder / "shared")}
    places["PIPX_BIN_DIR"] = str(folder / "bin")
    python = ["--python", sys.executable]
    asked = [str(UV), "tool", "run", "--quiet", *python, "--from", PIPX, "pipx", "install", *python, *words]
    subprocess.run(asked, env=ENVIRON | places_of_pip() | places, cwd=folder, check=True, timeout=500)
    return folder / "bin"


def lend_libraries(environment: Path) -> None:
    """Let an environment without libraries find those of the tests'."""
    (site_packages,) = environment.glob("lib/python3*/site-packages")
    # The path of a .pth file goes to the end: the wheel's package is found first, and no .pth file there is read.
    (site_packages / "libraries.pth").write_text(sysconfig.get_path("purelib"))


def required(wheel: Path) -> set[Requirement]:
    """Return the wheel's requirements without those of its extras."""
    with ZipFile(wheel) as files:
        (name,) = (name for name in files.namelist() if name.endswith(".dist-info/METADATA"))
        described = Parser().parsestr(files.read(name).decode())
    return {Requirement(line) for line in described.get_all("Requires-Dist") or () if "extra ==" not in line}


@pytest.fixture(scope="module")
def commands(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the commands that `uv tool install` made.

    The wheel's requirements are excluded, and lent by the tests' environment: they are a gigabyte or more.
    """
    folder = tmp_path_factory.mktemp("tool")
    (folder / "excluded.txt").write_text("\n".join(sorted({each.name for each in required(wheel)})))
    made = by_uv(folder, "--excludes", str(folder / "excluded.txt"), str(wheel))
    (environment,) = (each for each in (folder / "tools").iterdir() if each.is_dir())
    lend_libraries(environment)
    return made


def test_pip_installs_its_commands_too(wheel: Path, tmp_path: Path) -> None:
    python = empty_environment(tmp_path / "environment")
    subprocess.run([*pip_for(python), "install", "--quiet", "--no-deps", wheel], env=ENVIRON, check=True)
    lend_libraries(tmp_path / "environment")
    assert run(python.with_name("cache-dit-serving"), "--version", cwd=tmp_path).strip() == wheel.name.split("-")[1]


@pytest.mark.apart
@pytest.mark.parametrize("install", [by_uv, by_pipx])
def test_it_draws_where_its_requirements_were_installed_with_it(
    wheel: Path, install: Callable[..., Path], tmp_path: Path
) -> None:
    offered = places_of_pip().get("UV_FIND_LINKS", "").split(",")
    if not [wheel for folder in offered for wheel in Path(folder).glob("torch-*+cpu-*.whl")]:
        pytest.skip("pip is offered no folder with torch's CPU build, and the one with CUDA takes gigabytes")
    (tmp_path / "empty").mkdir()
    command = install(tmp_path, str(wheel)) / "cache-dit-serving"
    run(command, "generate", "a red apple", "--steps", "4", "-o", "apple.png", cwd=tmp_path / "empty")
    with Image.open(tmp_path / "empty" / "apple.png") as picture:
        assert picture.size == (96, 96)
    shutil.rmtree(tmp_path)  # pytest would keep its gigabyte


def test_the_page_names_each_way() -> None:
    page = ROOT / "docs" / "operations.md"
    assert ["pip", "install", "."] in commands_of(page, "pip")
    assert ["pipx", "install", "."] in commands_of(page, "pipx")
    assert ["uv", *UV_TOOL[1:], "."] in commands_of(page, "uv")


def test_it_requires_the_pinned_requirements(wheel: Path) -> None:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert required(wheel) == {Requirement(line) for line in lines if line and not line.startswith("#")}


def run(*words: Path | str, cwd: Path) -> str:
    """Run a command where the repository is not found; return what it prints."""
    done = subprocess.run(words, env=ENVIRON, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_its_commands_find_every_configuration(commands: Path, tmp_path: Path) -> None:
    listed = run(commands / "cache-dit-serving", "models", cwd=tmp_path)
    names = {line.split()[0] for line in listed.splitlines() if line}
    recommended = {file.stem for file in (ROOT / "configs").glob("*.yaml")} - {"embedded", "generic"}
    assert recommended <= names


def test_its_command_says_the_version_of_the_wheel(wheel: Path, commands: Path, tmp_path: Path) -> None:
    assert run(commands / "cache-dit-serving", "--version", cwd=tmp_path).strip() == wheel.name.split("-")[1]


def test_its_package_is_the_installed_one(commands: Path) -> None:
    python = (commands / "cache-dit-serving").read_text().splitlines()[0].removeprefix("#!")
    where = run(python, "-c", "import cache_dit_serving; print(cache_dit_serving.__file__)", cwd=Path("/"))
    assert Path(where.strip()).is_relative_to(commands.parent)


def test_it_draws_without_a_server(commands: Path, tmp_path: Path) -> None:
    run(commands / "cache-dit-serving", "generate", "a red apple", "--steps", "4", "-o", "apple.png", cwd=tmp_path)
    with Image.open(tmp_path / "apple.png") as picture:
        assert picture.size == (96, 96)


def test_it_serves_by_its_flags_and_keeps_its_files_where_it_was_started(commands: Path, tmp_path: Path) -> None:
    flags = ["--config", "embedded", "--rdt", "0.25", "--host", "127.0.0.1"]
    words = [str(commands / "cache-dit-serving"), "serve", *flags]
    # Relative: to the folder where the command runs, not to the package's.
    variables = UNWARMED | {"PYTHONPATH": "", "CACHE_DIT_SERVING__OUTPUTS__ROOT": "drawn"}
    with bentoml_serving(tmp_path / "server", words, cwd=tmp_path, environ=variables) as server:
        server.wait_for(ready)
        answer = server.generate(num_inference_steps=4, output_format="path").json()
        assert [Path(path).is_relative_to(tmp_path / "drawn") for path in answer["images"]] == [True]
        assert answer["cache"]["settings"]["residual_diff_threshold"] == 0.25
        server.process.terminate()
        assert server.process.wait(60) == 0
