"""Parts of a page. Every text is escaped as it is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup


@dataclass(frozen=True, slots=True)
class Heading:
    """Title of a section."""

    text: str


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Sentences, or a remark that stands out."""

    text: str
    note: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of texts. Columns after the first are aligned right, as figures are, unless `text` is true."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    text: bool = False


@dataclass(frozen=True, slots=True)
class Figure:
    """Drawing with its caption. `svg` is made by `plots.py` or `bars.py`."""

    svg: Markup
    caption: str


@dataclass(frozen=True, slots=True)
class Pictures:
    """Row of pictures, each with its caption, for a look side by side."""

    pictures: Sequence[tuple[str, str]]
    """(data URI of a picture, its caption)."""
    caption: str = ""


Part = Heading | Paragraph | Table | Figure | Pictures
