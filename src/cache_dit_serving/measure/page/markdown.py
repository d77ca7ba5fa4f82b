"""Markdown of a page's parts, without its figures."""

from __future__ import annotations

import re
from collections.abc import Sequence

from cache_dit_serving.measure.page.parts import Heading, Paragraph, Part, Table


def markdown(title: str, parts: Sequence[Part]) -> str:
    """Return a page's headings, paragraphs and tables in Markdown. Texts keep no markup of their own."""
    blocks = [f"# {escaped(title)}", *(block for part in parts if (block := _block(part)))]
    return "\n\n".join(blocks) + "\n"


def escaped(text: str) -> str:
    """Return a text in one line, in which nothing is markup."""
    line = "".join(char if char.isprintable() else " " for char in text)
    return re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", line).replace("&", "&amp;")


def _block(part: Part) -> str:
    if isinstance(part, Heading):
        return f"## {escaped(part.text)}"
    if isinstance(part, Paragraph):
        return f"> {escaped(part.text)}" if part.note else escaped(part.text)
    return _table(part) if isinstance(part, Table) else ""


def _table(table: Table) -> str:
    aligned = ":--" if table.text else "--:"
    rows = [table.columns, [":--", *[aligned] * (len(table.columns) - 1)], *table.rows]
    # The row of dashes is markup of its own.
    lines = ["| " + " | ".join(row if at == 1 else map(escaped, row)) + " |" for at, row in enumerate(rows)]
    caption = [f"{escaped(table.caption)}:", ""] if table.caption else []
    return "\n".join([*caption, *lines])
