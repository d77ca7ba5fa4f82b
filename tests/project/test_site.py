"""The site of the documentation has every page, and the links of the repository lead somewhere on it.

`make site` builds it, and checks anchors too.
"""

from __future__ import annotations

import posixpath
import re
from types import SimpleNamespace

import pytest

from tests.support.server import ROOT
from tools.site_links import PAGES, file_of, rewritten
from tools.site_offline import DIAGRAM, on_page_content, other_hosts, without_hosts

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


@pytest.mark.parametrize(
    "text",
    [
        '<script src="https://unpkg.com/mermaid@11/dist/mermaid.min.js"></script>',
        "<link rel=stylesheet href=//cdn.example.org/a.css>",
        '<img alt="a" src="http://img.example.org/badge.svg">',
        "@font-face{src:url(https://fonts.gstatic.com/s/roboto.woff2)}",
        '@import "https://fonts.googleapis.com/css?family=Roboto";',
    ],
)
def test_what_a_page_loads_from_another_host_is_found(text: str) -> None:
    assert len(other_hosts(text)) == 1


def test_links_and_own_files_are_no_other_hosts() -> None:
    page = '<a href="https://example.org/">x</a><script src="assets/a.js"></script><img src=data:image/png;base64,AA==>'
    assert other_hosts(page + "a{background:url(../images/a.png)}") == []


def test_a_script_loses_the_addresses_from_which_it_would_load() -> None:
    script = 'typeof mermaid=="undefined"?load("https://unpkg.com/mermaid@11/dist/mermaid.min.js"):"http://www.w3.org/2000/svg"'
    assert len(other_hosts(script, script=True)) == 1
    assert other_hosts(without_hosts(script), script=True) == []
    assert "http://www.w3.org/2000/svg" in without_hosts(script)


@pytest.mark.parametrize(
    ("url", "address"),
    [("architecture.html", '"assets/javascripts/mermaid'), ("benchmarks/start.html", '"../assets/javascripts/mermaid')],
)
def test_a_page_with_a_diagram_alone_loads_mermaid_of_the_site(url: str, address: str) -> None:
    page = SimpleNamespace(url=url)
    assert address in on_page_content(f"<pre {DIAGRAM}>", page=page)
    assert on_page_content("<pre>", page=page) == "<pre>"
