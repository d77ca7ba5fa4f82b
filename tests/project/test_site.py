"""The site of the documentation has every page, and the links of the repository lead somewhere on it.

`make site` builds it, and checks anchors too.
"""

from __future__ import annotations

import posixpath
import re

import pytest

from tests.support.server import ROOT
from tools.site_links import PAGES, file_of, rewritten

FILES = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*") if path.is_file()}
NAMES = sorted({name for name in FILES if name.endswith(".md")} | set(PAGES.values()))
LINK = re.compile(r"\]\((?![a-z]+:|#)([^)\s#]+)")
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def test_the_navigation_has_every_page_once() -> None:
    listed = re.findall(r"^ +- (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_to_files_of_the_site(name: str) -> None:
    file = file_of(name)
    text = rewritten((ROOT / file).read_text(encoding="utf-8"), file, name)
    targets = LINK.findall(FENCED.sub("", text))
    found = {posixpath.normpath(posixpath.join(posixpath.dirname(name), target)) for target in targets}
    assert found <= FILES | set(PAGES.values())


def test_a_link_out_of_the_site_leads_to_the_repository_or_stays_text() -> None:
    text = "see [the configurations](../configs/) and [API](api.md#jobs)\n```\n[kept](../configs/)\n```\n"
    without = rewritten(text, "docs/operations.md", "operations.md")
    assert without.startswith("see the configurations and [API](api.md#jobs)\n```\n[kept](../configs/)")
    linked = rewritten(text, "docs/operations.md", "operations.md", "https://example.org/team/serving")
    assert "[the configurations](https://example.org/team/serving/blob/HEAD/configs)" in linked
    assert "](changelog.md)" in rewritten("[log](../CHANGELOG.md)", "docs/deploy.md", "deploy.md")
    assert "](../api.md#jobs)" in rewritten(
        "[jobs](../api.md#jobs)", "docs/benchmarks/README.md", "benchmarks/README.md"
    )
