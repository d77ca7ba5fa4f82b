"""The packed Bento: built, installed from its own requirements in a clean environment, served from the store."""

from __future__ import annotations

import base64
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image

from tests.support.environments import empty_environment, install_requirements
from tests.support.server import ROOT, bentoml_serving, ready

pytestmark = pytest.mark.bento


@pytest.fixture(scope="module")
def bento(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`bentoml build` from the repository's root into a store of its own; the Bento's folder."""
    store = tmp_path_factory.mktemp("store")
    tools = Path(sys.executable).parent
    environ = os.environ | {
        "BENTOML_HOME": str(store),
        "BENTOML_DO_NOT_TRACK": "True",
        # bentoml build installs uv into the running environment unless it finds one.
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
    }
    subprocess.run([sys.executable, "-m", "bentoml", "build"], cwd=ROOT, env=environ, check=True, capture_output=True)
    (packed,) = store.glob("bentos/cache_dit_serving/*/bento.yaml")
    return packed.parent


def test_it_holds_the_service_its_sources_and_configurations_and_nothing_else(bento: Path) -> None:
    def files_below(folder: Path) -> set[str]:
        return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}

    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    expected = {
        name
        for name in tracked.stdout.splitlines()
        if name.startswith(("configs/", "src/cache_dit_serving/")) and (ROOT / name).is_file()
    }
    expected |= {"service.py", "requirements.txt", "LICENSE", "README.md"}
    assert files_below(bento / "src") == expected | {"bentofile.yaml"}  # which BentoML adds


def test_its_image_gets_torchvision_and_torchao_after_torch(bento: Path) -> None:
    files = [ROOT / f"requirements-{name}.txt" for name in ("vision", "quantization")]
    pins = [next(line for line in file.read_text().splitlines() if not line.startswith("#")) for file in files]
    (script,) = (bento / "env" / "docker").glob("script__*")
    assert f"uv pip install {' '.join(pins)}" in script.read_text().splitlines()
    described = yaml.safe_load((bento / "bento.yaml").read_text())["image"]
    assert script.name in described["post_commands"][-1]


def test_its_image_gets_no_compiler_and_no_git(bento: Path) -> None:
    dockerfile = (bento / "env" / "docker" / "Dockerfile").read_text()
    assert "FROM python:3.11-slim" in dockerfile
    assert not [word for word in ("build-essential", "git", "apt-get") if word in dockerfile]
    assert "ARG IMAGE_COMPILER=none" in dockerfile
    assert "ARG UV_FIND_LINKS\n" in dockerfile


def test_it_serves_from_the_store_in_an_environment_of_its_own_requirements(bento: Path, tmp_path: Path) -> None:
    python = empty_environment(tmp_path / "environment")
    install_requirements(python, bento / "env" / "python" / "requirements.txt")
    store = bento.parents[2]
    with bentoml_serving(
        tmp_path / "server",
        [str(python), "-m", "bentoml", "serve", "cache_dit_serving:latest", "--host", "127.0.0.1"],
        cwd=tmp_path,
        BENTOML_HOME=str(store),
        PYTHONPATH="",
        PYTHONDONTWRITEBYTECODE="1",  # nothing is added to what another test looks at
    ) as server:
        server.wait_for(ready)
        answer = server.generate(seed=7).json()
        image = Image.open(io.BytesIO(base64.b64decode(answer["images"][0])))
        assert image.size == (96, 96)
        assert answer["cache"]["engaged"]
