"""The page itself: one HTML file that fetches nothing and runs no script."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from cache_dit_serving.measure.page.parts import Part


def page(title: str, parts: Sequence[Part], *, lead: str = "", foot: str = "") -> str:
    """Return the HTML of a page.

    Its policy forbids every source and every style but its own, so that a text which got into it unescaped would still
    load and run nothing.

    Args:
        lead: a sentence below the title.
        foot: a line at the end, such as the versions that made the page.
    """
    folder = files(__package__)
    style = (folder / "page.css").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((folder / "page.html.jinja").read_text(encoding="utf-8"))
    style_hash = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return template.render(
        title=title,
        lead=lead,
        foot=foot,
        style=Markup(style),  # ours, and without a markup character
        style_hash=style_hash,
        parts=[(type(part).__name__, part) for part in parts],
    )
