"""The table of measures has a row for each figure of a distance, and the page of the documentation has the table."""

from __future__ import annotations

from dataclasses import fields

import pytest

from cache_dit_serving.measure.distances.outputs import DISTANCES, Distance, distance
from cache_dit_serving.measure.distances.table import MEASURES, ROWS
from cache_dit_serving.media.values import MediaKind
from tests.support.random_outputs import two_outputs
from tools.measures_page import PAGE, with_table


def test_a_row_stands_for_each_figure_of_a_distance() -> None:
    assert {row.name for row in ROWS if not row.needs} == {field.name for field in fields(Distance)} - {
        "shown",
        "worst_frame",
    }
    assert len(MEASURES) == len(ROWS)


def test_the_page_has_the_table() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == with_table(page), "make docs"


@pytest.mark.parametrize("kind", DISTANCES)
def test_figures_keep_to_their_rows(kind: MediaKind) -> None:
    ours, reference = two_outputs(kind)
    apart, same = distance(ours, reference), distance(ours, ours)
    for row in ROWS:
        if row.needs:
            continue
        value, equal = getattr(apart, row.name), getattr(same, row.name)
        assert (value is not None) == (kind in row.kinds)
        if value is not None:
            assert row.low <= value <= row.high
            assert equal == pytest.approx(row.equal, abs=1e-6)
            assert row.better(equal, value)
            assert not row.better(value, equal)
