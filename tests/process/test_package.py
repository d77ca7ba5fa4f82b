"""The wheel: built through its source distribution, installed away from the repository, and used by its commands."""

from __future__ import annotations

import os
import subprocess
import sysconfig
from email.parser import Parser
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement
from PIL import Image

from tests.support.checkout import copy_of_sources
from tests.support.environments import UV, empty_environment, pip_for
from tests.support.server import ROOT, UNWARMED, bentoml_serving, ready

pytestmark = pytest.mark.bento

ENVIRON = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built of the tracked and new files alone."""
    sources, built = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("built")
    copy_of_sources(sources, leave_out=("tests", "docs"))
    subprocess.run([UV, "build", "--quiet", "--out-dir", built, sources], check=True)
    (wheel,) = built.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def commands(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the commands in an environment that has the wheel, and its libraries from the tests' environment."""
    environment = tmp_path_factory.mktemp("environment")
    python = empty_environment(environment)
    subprocess.run([*pip_for(python), "install", "--quiet", "--no-deps", wheel], env=ENVIRON, check=True)
    (site_packages,) = environment.glob("lib/*/site-packages")
    # The path of a .pth file goes to the end: the wheel's package is found first, and no .pth file there is read.
    (site_packages / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    where = "import cache_dit_serving; print(cache_dit_serving.__file__)"
    found = subprocess.run([python, "-c", where], env=ENVIRON, cwd="/", capture_output=True, text=True, check=True)
    assert Path(found.stdout.strip()).is_relative_to(site_packages)
    return environment / "bin"


def test_it_requires_the_pinned_requirements(wheel: Path) -> None:
    with ZipFile(wheel) as files:
        (name,) = (name for name in files.namelist() if name.endswith(".dist-info/METADATA"))
        described = Parser().parsestr(files.read(name).decode())
    declared = {Requirement(line) for line in described.get_all("Requires-Dist") or () if "extra ==" not in line}
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert declared == {Requirement(line) for line in lines if line and not line.startswith("#")}


def test_its_commands_find_every_configuration(commands: Path, tmp_path: Path) -> None:
    words = [str(commands / "cache-dit-serving"), "models"]
    listed = subprocess.run(words, env=ENVIRON, cwd=tmp_path, capture_output=True, text=True, check=True)
    names = {line.split()[0] for line in listed.stdout.splitlines() if line}
    recommended = {file.stem for file in (ROOT / "configs").glob("*.yaml")} - {"embedded", "generic"}
    assert recommended <= names


def test_its_command_says_the_version_of_the_wheel(wheel: Path, commands: Path, tmp_path: Path) -> None:
    words = [str(commands / "cache-dit-serving"), "--version"]
    said = subprocess.run(words, env=ENVIRON, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == wheel.name.split("-")[1]


def test_it_draws_without_a_server(commands: Path, tmp_path: Path) -> None:
    words = [str(commands / "cache-dit-serving"), "generate", "a red apple", "--steps", "4", "-o", "apple.png"]
    subprocess.run(words, env=ENVIRON, cwd=tmp_path, check=True)
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
