"""Which outputs are kept."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from cache_dit_serving.media.outputs import Listed, OutputFolder
from cache_dit_serving.media.retention import due_of

NOW = 1e6
OUTPUTS = [
    Listed("young", 50, NOW - 10),
    Listed("b", 30, NOW - 200),
    Listed("a", 20, NOW - 300),
    Listed("c", 10, NOW - 100),
]


@pytest.mark.parametrize(
    ("keep_s", "max_bytes", "expected"),
    [
        (None, None, []),
        (1000, 110, []),
        (250, None, ["a age"]),
        (150, None, ["a age", "b age"]),
        (5, None, ["a age", "b age", "c age"]),
        (None, 109, ["a bytes"]),
        (None, 90, ["a bytes"]),
        (None, 89, ["a bytes", "b bytes"]),
        (None, 1, ["a bytes", "b bytes", "c bytes"]),
        (250, 60, ["a age", "b bytes"]),
    ],
)
def test_the_oldest_go_first_and_none_that_is_young(
    keep_s: float | None, max_bytes: int | None, expected: list[str]
) -> None:
    assert [f"{due.output.name} {due.reason}" for due in due_of(OUTPUTS, NOW, keep_s, max_bytes)] == expected


def test_only_outputs_are_listed_and_only_old_leftovers_go(tmp_path: Path) -> None:
    outputs = OutputFolder(tmp_path)
    names = [*outputs.save_all([(b"12", "png")], None), *outputs.save_all([(b"123", "mp4")], "below/it")]
    for other in (
        "mine.png",
        "jobs.sqlite3",
        ".signing-key",
        f".hidden-{names[0]}",
        ".partial-new",
        "below/.partial-old",
    ):
        (tmp_path / other).write_bytes(b"x")
    (tmp_path / "link.png").symlink_to(tmp_path / names[0])
    (tmp_path / names[0].replace("png", "webp")).symlink_to(tmp_path / names[0])
    os.utime(tmp_path / "below" / ".partial-old", (1, 1))
    assert sorted((each.name, each.bytes) for each in outputs.listed()) == sorted(zip(names, (2, 3), strict=True))
    assert all(abs(each.modified - time.time()) < 60 for each in outputs.listed())
    outputs.tidy(time.time() - 100)
    assert not (tmp_path / "below" / ".partial-old").exists()
    assert (tmp_path / ".partial-new").exists()
    outputs.delete([names[1]], "below/it")
    assert not (tmp_path / "below" / "it").exists()
    outputs.delete([names[0], names[0]], "")
    assert outputs.listed() == []
    assert OutputFolder(tmp_path / "none").listed() == []
