"""docs/models.md as a whole; the tests in tests/families/ hold each class to its row."""

from __future__ import annotations

from tests.support.families import ENTRIES
from tools.models_table import rows


def test_every_class_has_a_row() -> None:
    assert rows().keys() == ENTRIES.keys()


def test_a_class_that_is_not_cached_says_why() -> None:
    assert [name for name, row in rows().items() if row.state != "cached" and not row.note] == []


def test_a_hundred_classes_of_forty_families_are_served_with_the_cache() -> None:
    cached = {name for name, row in rows().items() if row.state == "cached"}
    assert len({ENTRIES[name]["class"] for name in cached}) >= 100
    assert len({ENTRIES[name]["family"] for name in cached}) >= 40
