"""Hook of mkdocs: the site loads nothing from other hosts, so that it works without a network.

Mermaid, which draws the diagrams, comes from npm into the build (`make site`). Pages with a diagram load it.
"""

from __future__ import annotations

import posixpath
import re
import shutil
from pathlib import Path
from typing import Any

MERMAID = Path(__file__).resolve().parents[1] / "build" / "mermaid" / "dist" / "mermaid.min.js"
ON_SITE = "assets/javascripts/mermaid.min.js"
DIAGRAM = 'class="mermaid"'
_LOADING = re.compile(
    r"<(?:script|link|img|iframe|source|video|audio|object|embed)\b[^>]*?\b(?:src|href|data)=[\"']?((?:https?:)?//[^\"'\s>]+)"
    r"|(?:url\(|@import )\s*[\"']?((?:https?:)?//[^\"')\s]+)",
    re.IGNORECASE,
)
_HOST_OF_SCRIPTS = re.compile(
    r"[\"'`](https?://(?:[\w-]+\.)*(?:unpkg|jsdelivr|cloudflare|googleapis|gstatic)\.\w+/[^\"'`]*)"
)


def on_page_content(html: str, *, page: Any, **_: Any) -> str:
    """Return a page that loads Mermaid before the theme looks for it, where it has a diagram."""
    if DIAGRAM not in html:
        return html
    address = posixpath.relpath(ON_SITE, posixpath.dirname(page.url) or ".")
    return f'<script src="{address}"></script>\n{html}'


def on_post_build(*, config: Any) -> None:
    """Bring Mermaid, cut the theme's addresses of other hosts, and fail where a file names one still."""
    from mkdocs.exceptions import PluginError

    site = Path(config.site_dir)
    if not MERMAID.is_file():
        raise PluginError(f"{MERMAID} is missing: `make site` takes it from npm")
    shutil.copy(MERMAID, site / ON_SITE)
    for script in site.glob("assets/javascripts/bundle.*.js"):
        script.write_text(without_hosts(script.read_text(encoding="utf-8")), encoding="utf-8")
    found = {
        f"{file.relative_to(site)}: {address}"
        for file in site.rglob("*")
        if file.suffix in {".html", ".css", ".js"}
        for address in other_hosts(file.read_text(encoding="utf-8"), script=file.suffix == ".js")
    }
    if found:
        raise PluginError("loaded from other hosts:\n" + "\n".join(sorted(found)))


def without_hosts(script: str) -> str:
    """Return the theme's script without the addresses from which it would load what is missing."""
    return _HOST_OF_SCRIPTS.sub(lambda found: found[0].replace(found[1], "about:blank"), script)


def other_hosts(text: str, *, script: bool = False) -> list[str]:
    """Return the addresses on other hosts from which a file loads scripts, styles, fonts or media.

    Args:
        script: Whether the text is JavaScript; else it is HTML or CSS.
    """
    if script:
        return [found[1] for found in _HOST_OF_SCRIPTS.finditer(text)]
    return [found[1] or found[2] for found in _LOADING.finditer(text) if 'rel="canonical"' not in found[0]]
