"""The script that completes the container's environment (docker/setup.sh), run beside a checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.server import ROOT


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Variables of the image: its environment, with the tests' Python in it, and its Bento."""
    folder, bento = tmp_path / "venv" / "bin", tmp_path / "bento"
    folder.mkdir(parents=True)
    bento.mkdir()
    (bento / "src").symlink_to(ROOT)
    (folder / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (folder / "uv").write_text("#!/bin/sh\n")  # the image's installs torchvision and torchao
    for program in folder.iterdir():
        program.chmod(0o755)
    return os.environ | {
        "VIRTUAL_ENV": str(folder.parent),
        "BENTO_PATH": str(bento),
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
    }


def test_the_image_has_both_commands_on_its_path(environment: dict[str, str], tmp_path: Path) -> None:
    subprocess.run([ROOT / "docker" / "setup.sh"], env=environment, cwd=tmp_path, check=True)
    for words, said in (
        (["cache-dit-serving", "join", "--help"], "HOST:PORT"),
        (["cache-dit-serving", "nothing"], "there is no command nothing"),
        (["cache-dit-serve", "--help"], "--model-path"),
    ):
        run = subprocess.run(
            ["sh", "-c", '"$@"', "sh", *words], env=environment, capture_output=True, text=True, check=False
        )
        assert run.returncode == (2 if "no command" in said else 0)
        assert said in run.stdout + run.stderr
