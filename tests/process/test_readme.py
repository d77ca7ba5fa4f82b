"""The README as a stranger follows it, then the marked blocks of other pages: each runs as it stands, in order."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

from tests.support.checkout import copy_of_sources, link_environment
from tests.support.forked import environment
from tests.support.server import ROOT, free_port

pytestmark = pytest.mark.bento

BLOCK = re.compile(r"(?:^<!-- ([^\n]*) -->\n)?^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FOREGROUND = "runs until it is stopped"
NOT_RUN = "not run: "
RUN_HERE = "run by tests/process/test_readme.py"
README = ROOT / "README.md"
OTHERS = (ROOT / "docs" / "api.md", ROOT / "docs" / "operations.md")
MOST_S = 240
"""Seconds of one block; most wait for a server to load."""


@dataclass(frozen=True)
class Block:
    mark: str
    language: str
    text: str


@dataclass(frozen=True)
class Effect:
    """What a block that runs does.

    Attributes:
        of: a word of the block.
        makes: pictures.
        says: on its standard output.
    """

    of: str
    makes: tuple[str, ...] = ()
    says: str = ""


EFFECTS = (
    Effect("make serve"),
    Effect("cache-dit-serving generate", makes=("apple.png",), says="apple.png"),
    Effect("cache-dit-serve --help", says="--residual-diff-threshold"),
    Effect("readyz", makes=("apple.png",)),
    Effect("from openai import OpenAI", makes=("panda.png",)),
    Effect("/compare", says='"cached_steps"'),
)
"""Effects of the README's blocks that run, in order."""
EFFECTS_OF_OTHERS = (
    Effect("mask_url", makes=("mask.png", "img2img.png", "inpaint.png")),
    Effect("monochrome", makes=("half.png",)),
    Effect("/compare", makes=("cached.png", "uncached.png", "difference.png"), says="psnr_db"),
    Effect("import bentoml", says="[2] 1"),
    Effect("bentoml build", says="cache_dit_serving:"),
)


def blocks(page: Path) -> list[Block]:
    return [Block(*found) for found in BLOCK.findall(page.read_text(encoding="utf-8"))]


def runs(block: Block) -> bool:
    return not block.mark.startswith(NOT_RUN)


def marked_in_others() -> list[Block]:
    return [block for page in OTHERS for block in blocks(page) if block.mark == RUN_HERE]


def test_a_block_is_left_out_for_a_reason_alone() -> None:
    assert [block.mark for block in blocks(README) if block.mark not in ("", FOREGROUND) and runs(block)] == []
    assert len([block for block in blocks(README) if runs(block)]) == len(EFFECTS)
    fences = re.findall(r"^```\w+$", README.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(fences) == len(blocks(README))


def test_a_marked_block_of_another_page_has_an_effect() -> None:
    assert len(marked_in_others()) == len(EFFECTS_OF_OTHERS)
    marks = sum(page.read_text(encoding="utf-8").count(f"<!-- {RUN_HERE} -->") for page in OTHERS)
    assert marks == len(EFFECTS_OF_OTHERS)


def test_the_readme_fits_three_screens_and_shows_the_gpu_on_the_first() -> None:
    lines = README.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 130
    assert lines.index("## A real model on a GPU") < len(lines) / 3
    assert sum("b64decode(json.load" in line for line in lines) <= 1


@dataclass(frozen=True)
class Stranger:
    """Someone with a fresh copy of the repository, who uses other ports than the page's on a machine of many tests."""

    folder: Path
    environ: dict[str, str]
    ports: dict[str, str]

    def words(self, block: Block) -> list[str]:
        text = re.sub(r"\b(3000|8000)\b", lambda found: self.ports[found[0]], block.text)
        shell = ["bash", "-e", "-o", "pipefail", "-c", text]
        return shell if block.language == "bash" else [str(self.folder / ".venv/bin/python"), "-c", text]

    def run(self, block: Block) -> str:
        done = subprocess.run(
            self.words(block),
            cwd=self.folder,
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=MOST_S,
            check=False,
        )
        assert done.returncode == 0, f"{block.text}\n{done.stdout}"
        return done.stdout

    @contextmanager
    def running(self, block: Block) -> Iterator[None]:
        """A block in a terminal of its own, until Ctrl-C."""
        with (self.folder / "terminal.log").open("wb") as log:
            process = subprocess.Popen(
                self.words(block),
                cwd=self.folder,
                env=self.environ,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            yield
        finally:
            os.killpg(process.pid, signal.SIGINT)
            try:
                process.wait(60)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture
def stranger(tmp_path: Path) -> Stranger:
    folder = tmp_path / "cache-dit-serving"
    copy_of_sources(folder)
    link_environment(folder / ".venv")
    ports = {port: str(free_port()) for port in ("3000", "8000")}
    environ = environment()
    environ |= {
        "PORT": ports["3000"],
        "PYTHONPATH": str(folder / "src"),  # the environment's own install is of the repository
        "BENTOML_HOME": str(tmp_path / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "True",
    }
    return Stranger(folder, environ, ports)


@pytest.mark.skipif(sys.prefix == sys.base_prefix, reason="the tests do not run in an environment of their own")
def test_every_block_does_what_is_said_of_it(stranger: Stranger) -> None:
    served, *others = [block for block in blocks(README) if runs(block)]
    assert served.mark == FOREGROUND
    with stranger.running(served):
        for block, effect in zip([*others, *marked_in_others()], EFFECTS[1:] + EFFECTS_OF_OTHERS, strict=True):
            assert effect.of in block.text
            pictures = [stranger.folder / name for name in effect.makes]
            for picture in pictures:
                picture.unlink(missing_ok=True)
            said = stranger.run(block)
            assert effect.says in said
            for picture in pictures:
                with Image.open(picture) as made:
                    assert made.size == (96, 96), picture.name
