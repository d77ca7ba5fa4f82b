"""What completes the image: docker/setup.sh, run beside a checkout, and the layer with weights."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cache_dit_serving.config.reading import resolve
from tests.support.server import ROOT
from tools.image.labels import missing_labels
from tools.image.weights import DOCKERFILE


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Variables of the image: its environment, with the tests' Python in it, and its Bento."""
    folder, bento = tmp_path / "venv" / "bin", tmp_path / "bento"
    folder.mkdir(parents=True)
    bento.mkdir()
    (bento / "src").symlink_to(ROOT)
    (folder / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    # The image's installs torchvision and torchao, and runs the tool that writes the bill of materials.
    bill = """[ "$1" != tool ] || echo '{"components": []}' > "$VIRTUAL_ENV/share/sbom.cdx.json"\n"""
    (folder / "uv").write_text(f"#!/bin/sh\n{bill}")
    for program in folder.iterdir():
        program.chmod(0o755)
    return os.environ | {
        "VIRTUAL_ENV": str(folder.parent),
        "BENTO_PATH": str(bento),
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
    }


@pytest.mark.slow
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


@pytest.mark.parametrize(("config", "taken"), [("", "embedded"), ("flux", "flux")], ids=["recognised", "named"])
def test_weights_inside_choose_the_model_and_its_configuration(config: str, taken: str) -> None:
    folder = ROOT / "src" / "cache_dit_serving" / "embedded" / "emoji-flux"
    text = DOCKERFILE.read_text(encoding="utf-8").replace("/models/${NAME}", str(folder)).replace("${CONFIG}", config)
    variables = dict(re.findall(r"(\w+)=([^\s\\]*)", text[text.index("\nENV ") : text.index("\n\n# As the")]))
    read = resolve(variables)
    assert (read.name, read.settings.model.path) == (taken, str(folder))
    assert variables["HF_HUB_OFFLINE"] == "1"


def test_a_label_that_is_missing_or_differs_is_named() -> None:
    expected = {"version": "0.1.0", "source": "here"}
    assert missing_labels(expected, {"Labels": {**expected, "another": "1"}}) == []
    assert missing_labels(expected, {"Labels": None}) == [
        "label version is None where '0.1.0' is expected",
        "label source is None where 'here' is expected",
    ]
