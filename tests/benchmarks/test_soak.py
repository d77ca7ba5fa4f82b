"""What a soak says of its samples: lines, bounds, table and plot; the run itself is `make soak`."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

import pytest

from benchmarks.soak import seconds_of
from benchmarks.soak_lines import GROWTH, Line, Sample, drawn, flat_lines, growth, percentile_99, table

STEADY = [Sample(float(at), 900.0, 80, 60, 3, 40, 50) for at in range(12)]


def test_growth_leaves_the_warm_up_out() -> None:
    assert growth([0, 50, 100, 100, 101, 99, 100, 100, 100]) == 0
    assert growth([0, 0, 0, 10, 10, 10, 25, 25, 25]) == 15
    with pytest.raises(ValueError, match="three at least"):
        growth([1, 2])


@pytest.mark.parametrize("figure", GROWTH)
def test_a_figure_that_grows_in_one_life_fails_its_line_alone(figure: str) -> None:
    name, bound, _ = GROWTH[figure]
    assert all(line.holds for line in flat_lines([STEADY, STEADY], 132))
    leaking = [replace(each, **{figure: 1 + each.at_s * bound}) for each in STEADY]
    assert [line.name for line in flat_lines([STEADY, leaking], 132) if not line.holds] == [name]


def test_files_of_outputs_above_those_of_the_rows_fail() -> None:
    full = [replace(each, output_files=153) for each in STEADY]
    assert [line.name for line in flat_lines([STEADY, full], 132) if not line.holds] == ["files of outputs, the most"]


def test_rows_above_what_is_kept_fail() -> None:
    full = [replace(each, rows=133) for each in STEADY]
    assert [line.name for line in flat_lines([STEADY, full], 132) if not line.holds] == ["rows of the store, the most"]


def test_a_line_that_fails_is_marked_in_the_table() -> None:
    rows = table([Line("memory", 12.34, 60, "MB"), Line("jobs lost", 1, 0)]).splitlines()
    assert rows[2:] == ["| memory | 12.3 MB | at most 60.0 MB | holds |", "| jobs lost | 1 | at most 0 | **fails** |"]


def test_a_route_that_never_answered_is_no_fast_one() -> None:
    assert not Line("p99", percentile_99([]), 250).holds
    assert percentile_99([float(value) for value in range(101)]) == pytest.approx(99, abs=1)


def test_the_plot_is_a_file_of_its_own() -> None:
    image = ElementTree.fromstring(drawn(STEADY))
    assert image.tag == "{http://www.w3.org/2000/svg}svg"
    assert "descriptors (most: 60)" in "".join(image.itertext())


def test_lengths_are_written_as_make_takes_them() -> None:
    assert [seconds_of(text) for text in ("90s", "10m", "8h", "1.5min")] == [90, 600, 28800, 90]
    with pytest.raises(ValueError, match="such as 90s, 10m or 8h"):
        seconds_of("ten")
