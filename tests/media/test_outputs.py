"""The folder of outputs: files whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cache_dit_serving.errors import InternalError
from cache_dit_serving.media.outputs import OutputFolder


def test_files_of_one_request_are_written_all_or_none(tmp_path: Path) -> None:
    outputs = OutputFolder(tmp_path)
    assert len(outputs.save_all([(b"1", "png"), (b"2", "jpeg")], "a")) == 2
    with pytest.raises(InternalError):
        # The second one's name leads into a folder that is not there.
        outputs.save_all([(b"3", "png"), (b"4", "none/png")], "a")
    assert sorted(file.read_bytes() for file in (tmp_path / "a").iterdir()) == [b"1", b"2"]


def test_nobody_else_reads_an_output_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        outputs = OutputFolder(tmp_path / "root" / "of all", sign_s=60)
        outputs.save_all([(b"1", "png")], "a/b")
        outputs.address("a/b/x.png", "url", "http://localhost")
    finally:
        os.umask(before)
    made = [*tmp_path.rglob("*")]
    assert len(made) == 6
    assert {oct(each.stat().st_mode & 0o777) for each in made if each.is_dir()} == {"0o700"}
    assert {oct(each.stat().st_mode & 0o777) for each in made if each.is_file()} == {"0o600"}
