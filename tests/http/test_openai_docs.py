"""What docs/openai.md shows, typed as it stands."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.support.server import ROOT, Server

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
            command = [sys.executable, "-W", "ignore", "-c", text] if language == "python" else ["bash", "-ec", text]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
            assert done.returncode == 0, f"{text}\n{done.stderr}"
            assert '"error"' not in done.stdout.replace('"error": null', ""), done.stdout
            said.append(done.stdout)
    return said


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
