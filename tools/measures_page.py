"""The table of docs/measures.md. `python -m tools.measures_page` writes it from `measure/distances/table.py`."""

from __future__ import annotations

import re

from cache_dit_serving.measure.distances.table import markdown
from tests.support.server import ROOT

PAGE = ROOT / "docs" / "measures.md"
PLACE = re.compile(r"(?<=<!-- generated: measures -->\n).*?(?=<!-- end -->)", re.DOTALL)


def with_table(page: str) -> str:
    """Return the page with the table as the code has it."""
    written, places = PLACE.subn(lambda _: markdown() + "\n", page)
    assert places == 1
    return written


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
