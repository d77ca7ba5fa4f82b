"""The page of `make bench`: a section that is measured again leaves the others alone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import run
from benchmarks.sections import SECTIONS, Section


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the sections that were measured, in their order; each gives its name and how often it was."""
    names: list[str] = []

    def section(name: str, title: str) -> Section:
        def measure(bench: Any) -> str:
            names.append(name)
            if name == "video" and names.count("video") == 2:
                raise RuntimeError("the encoder is gone")
            return f"{name}, time {names.count(name)}."

        return Section(title, measure)

    for name, (title, _) in SECTIONS.items():
        monkeypatch.setitem(SECTIONS, name, section(name, title))
    return names


def bench(monkeypatch: pytest.MonkeyPatch, page: Path, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["run", "--page", str(page), *words])
    run.main()


def test_all_sections_are_measured_and_written(
    measured: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bench(monkeypatch, page := tmp_path / "page.md")
    assert measured == list(SECTIONS)
    titles = [line for line in page.read_text().splitlines() if line.startswith("## ")]
    assert titles == [f"## {section.title}" for section in SECTIONS.values()] + ["## Other pages"]
    assert all(f"\n{name}, time 1.\n" in page.read_text() for name in SECTIONS)


def test_a_section_by_its_name_leaves_the_others_as_they_are(
    measured: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bench(monkeypatch, page := tmp_path / "page.md")
    before = page.read_text()
    bench(monkeypatch, page, "cache")
    assert page.read_text() == before.replace("cache, time 1.", "cache, time 2.")


def test_a_run_that_ends_half_way_keeps_its_sections(
    measured: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bench(monkeypatch, page := tmp_path / "page.md")
    with pytest.raises(RuntimeError, match="the encoder is gone"):
        bench(monkeypatch, page)
    assert "overhead, time 2." in page.read_text()
    assert "video, time 1." in page.read_text()


def test_an_unknown_section_is_told_before_anything_is_measured(
    measured: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        bench(monkeypatch, tmp_path / "page.md", "speed")
    assert "there is no section speed; there are overhead, saturation" in capsys.readouterr().err
    assert measured == []


def test_the_page_is_as_its_script_writes_it() -> None:
    """Its opening and its list of pages too, which a run writes anew."""
    page = run.PAGE.read_text(encoding="utf-8")
    date = page.split("(", 1)[1].split(")", 1)[0]
    assert page == run.with_sections(run.PAGE, {}, date)
