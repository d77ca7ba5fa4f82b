"""Hook of mkdocs: pages at the top of the repository join the site, and links between files become links of the site.

The pages are written for the repository, where a link leads to a file. A link to a file that the site has not leads to
`repo_url` of mkdocs.yml; without one its text stays, and the link goes.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DOCS = "docs/"
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "training/README.md": "training.md",
}
"""Pages outside docs/, by their file: their names on the site."""
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
FENCED = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
ELSEWHERE = re.compile(r"[a-z]+:|#")
"""Begin of a link that leads out of the repository, or stays on its page."""


def on_files(files: Any, *, config: Any) -> Any:
    """Add the pages outside docs/."""
    from mkdocs.structure.files import File

    for file, name in PAGES.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / file)))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Return the page with its links as they are on the site."""
    name: str = page.file.src_uri
    repository = (config.repo_url or "").rstrip("/")
    return rewritten(markdown, file_of(name), name, repository)


def file_of(name: str) -> str:
    """Return the file in the repository of a page of the site."""
    return next((file for file, its_name in PAGES.items() if its_name == name), DOCS + name)


def rewritten(markdown: str, file: str, name: str, repository: str = "") -> str:
    """Return the text of a page with its links as they are on the site.

    Args:
        file: path of the page in the repository.
        name: path of the page on the site.
        repository: address of the repository, for links to files that the site has not.
    """

    def replaced(link: re.Match[str]) -> str:
        image, text, target = link.groups()
        if ELSEWHERE.match(target):
            return link[0]
        path, _, anchor = target.partition("#")
        anchor = f"#{anchor}" if anchor else ""
        found = posixpath.normpath(posixpath.join(posixpath.dirname(file), path))
        on_site = PAGES.get(found) or (found.removeprefix(DOCS) if found.startswith(DOCS) else None)
        if on_site is not None:
            relative = posixpath.relpath(on_site, posixpath.dirname(name) or ".")
            return f"{image}[{text}]({relative}{anchor})"
        return f"{image}[{text}]({repository}/blob/HEAD/{found}{anchor})" if repository else text

    # Odd parts are blocks of code.
    parts = FENCED.split(markdown)
    return "".join(part if index % 2 else LINK.sub(replaced, part) for index, part in enumerate(parts))
