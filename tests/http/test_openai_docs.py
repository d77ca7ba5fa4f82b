"""What docs/openai.md shows, typed as it stands."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import warnings
from pathlib import Path

import pytest

from tests.support.server import ROOT, Server

pytestmark = pytest.mark.slow

SECTIONS = re.split(r"^## ", (ROOT / "docs" / "openai.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def typed(server: Server, folder: Path, *sections: str) -> list[str]:
    """What each block of some sections prints."""
    said = []
    for section in SECTIONS:
        if not section.startswith(sections):
            continue
        for language, block in BLOCK.findall(section):
            text = block.replace("http://localhost:3000", server.url)
            printed = (by_python if language == "python" else by_bash)(text, folder)
            assert '"error"' not in printed.replace('"error": null', ""), printed
            said.append(printed)
    return said


def by_python(text: str, folder: Path) -> str:
    """What a block prints in this process, which has imported the client."""
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()) as printed, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(text, {"__name__": "__main__"})
    return printed.getvalue()


def by_bash(text: str, folder: Path) -> str:
    done = subprocess.run(["bash", "-ec", text], cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{text}\n{done.stderr}"
    return done.stdout


def test_images(server: Server, tmp_path: Path) -> None:
    said = typed(server, tmp_path, "Images", "Edits", SECTIONS[0][:8])
    assert len(said) == 6
    assert (tmp_path / "green.png").read_bytes().startswith(b"\x89PNG")


def test_videos(wan: Server, tmp_path: Path) -> None:
    said = typed(wan, tmp_path, "Videos")
    assert len(said) == 2
    assert said[0].startswith("completed")
    assert (tmp_path / "apple.mp4").stat().st_size > 500


def test_every_block_is_typed() -> None:
    assert sum(len(BLOCK.findall(section)) for section in SECTIONS) == 8
