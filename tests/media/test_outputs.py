"""The folder of outputs: files whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cache_dit_serving.errors import InternalError
from cache_dit_serving.media.outputs import OutputFolder
from cache_dit_serving.private import Readers


def test_files_of_one_request_are_written_all_or_none(tmp_path: Path) -> None:
    outputs = OutputFolder(tmp_path)
    assert len(outputs.save_all([(b"1", "png"), (b"2", "jpeg")], "a")) == 2
    with pytest.raises(InternalError):
        # The second one's name leads into a folder that is not there.
        outputs.save_all([(b"3", "png"), (b"4", "none/png")], "a")
    assert sorted(file.read_bytes() for file in (tmp_path / "a").iterdir()) == [b"1", b"2"]


@pytest.mark.parametrize("umask", [0, 0o077])
@pytest.mark.parametrize(
    ("readers", "folders", "output"),
    [("user", "0o700", "0o600"), ("group", "0o750", "0o640"), ("all", "0o755", "0o644")],
)
def test_outputs_are_for_their_readers_whatever_the_umask(
    tmp_path: Path, umask: int, readers: Readers, folders: str, output: str
) -> None:
    before = os.umask(umask)
    try:
        outputs = OutputFolder(tmp_path / "root" / "of all", sign_s=60, readers=readers)
        outputs.save_all([(b"1", "png")], "a/b")
        outputs.address("a/b/x.png", "url", "http://localhost")
    finally:
        os.umask(before)
    made = {path: oct(path.stat().st_mode & 0o777) for path in tmp_path.rglob("*")}
    assert len(made) == 6
    assert {mode for path, mode in made.items() if path.is_dir()} == {folders}
    assert {mode for path, mode in made.items() if path.suffix == ".png"} == {output}
    assert made[tmp_path / "root" / "of all" / ".signing-key"] == "0o600"
