"""The documentation names what there is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from cache_dit_serving.api.routes import OPERATIONS
from cache_dit_serving.caching.report import CacheReport
from cache_dit_serving.caching.settings import CacheOptions
from cache_dit_serving.config.settings import RequestDefaults, Settings
from cache_dit_serving.schemas.request import GenerateRequest
from tests.support.server import ROOT
from tools.schema_tables import PAGES as PAGES_WITH_TABLES
from tools.schema_tables import SCHEMAS, SEE, SETTINGS, parts, with_tables

TOPS = ("src", "docs", "tests", "benchmarks", "configs", "training", "docker", "deploy")
PAGES = sorted([*ROOT.glob("*.md"), ROOT / "training" / "README.md", *(ROOT / "docs").rglob("*.md")])
FOLDERS = sorted({ROOT, *(file.parent for top in TOPS for file in (ROOT / top).rglob("*.*"))})
"""Folders that a file may be named from: a page says `jobs/queue.py`, or `queue.py` in the row of its folder."""
NOT_SERVED = {("GET", "/redoc")}
"""Routes of cache_dit.serve that the pages name because they are gone."""
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
ANCHOR = re.compile(r'<a id="([^"]+)">')
MEASURED = sorted(page for page in (ROOT / "docs" / "benchmarks").glob("*.md") if page.name != "test-times.md")
CODE = re.compile(r"`([^`\n]+)`")
FILE = re.compile(r"[\w./-]+\.(?:py|md|yaml|json|toml|txt)")
SETTING = re.compile(r"[a-z_]+(?:\.[a-z_]+)+")
ROUTE = re.compile(r"(GET|POST|PATCH|DELETE) (/[^\s?]*)(?:\?.*)?")
PARAMETER = re.compile(r"{\w+}")
OF_AN_ANSWER = {f"cache.{name}" for name in (*CacheReport.model_fields, *CacheOptions.model_fields, "block_lists")}
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def leaves(model: type[BaseModel]) -> list[str]:
    names = []
    for name, field in model.model_fields.items():
        nested = [part for part in getattr(field.annotation, "__args__", (field.annotation,)) if isinstance(part, type)]
        sections = [part for part in nested if issubclass(part, BaseModel)]
        names += [leaf for section in sections for leaf in leaves(section)] or [name]
    return names


def codes(page: Path) -> list[str]:
    """The names in a page's text, between backticks."""
    return CODE.findall(FENCED.sub("", page.read_text(encoding="utf-8")))


def paths(model: type[BaseModel], above: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield above + name
        for part in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from paths(part, f"{above}{name}.")


def anchors(page: Path) -> set[str]:
    """The targets within a page: its headings as GitHub writes them, and its own anchors."""
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    headings = (re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in HEADING.findall(text))
    return {*headings, *ANCHOR.findall(text)}


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def test_the_configuration_page_names_every_setting() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    missing = [name for name in leaves(Settings) if f"`{name}`" not in page and f"## {name}" not in page]
    assert not missing


def test_the_api_page_names_every_field_of_a_request() -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    assert not [name for name in GenerateRequest.model_fields if f"`{name}`" not in page]


@pytest.mark.parametrize("page", PAGES_WITH_TABLES, ids=named)
def test_tables_of_fields_are_those_of_the_schemas(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text == with_tables(text), "make docs"


def test_a_setting_has_one_row() -> None:
    rows = [
        f"{schema}.{name}"
        for schema, names in parts((ROOT / "docs" / "configuration.md").read_text(encoding="utf-8"))
        for name in names
    ]
    without_row = {"ModelSettings.loras", "ModelSettings.lora_folder"}  # described below the table
    every = {f"{schema.__name__}.{name}" for schema in SETTINGS for name in schema.model_fields}
    assert sorted(rows) == sorted(every - without_row)


def test_a_link_beside_a_description_is_of_a_field() -> None:
    fields = (name.split(".") for name in SEE)
    assert not [f"{schema}.{field}" for schema, field in fields if field not in SCHEMAS[schema].model_fields]


def test_a_setting_and_a_field_have_a_description() -> None:
    described = {*SCHEMAS.values()} - {RequestDefaults}  # those of the request's fields hold for its defaults
    assert not [
        f"{schema.__name__}.{name}"
        for schema in described
        for name, field in schema.model_fields.items()
        if not field.description
    ]


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_a_file_that_is_named_is_there(page: Path) -> None:
    files = [file for file in codes(page) if FILE.fullmatch(file) and not file.startswith(("build/", "/"))]
    assert not [file for file in files if not any((folder / file).exists() for folder in FOLDERS)]


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_a_setting_that_is_named_is_there(page: Path) -> None:
    names = {code.partition(":")[0] for code in codes(page) if not FILE.fullmatch(code)}
    dotted = {name for name in names if SETTING.fullmatch(name)}
    of_sections = {name for name in dotted if name.partition(".")[0] in Settings.model_fields}
    assert of_sections <= {*paths(Settings)} | OF_AN_ANSWER


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_a_route_that_is_named_is_there(page: Path) -> None:
    routes = {match.groups() for code in codes(page) if (match := ROUTE.fullmatch(code)) and "..." not in code}
    served = {(operation.method, operation.route) for operation in OPERATIONS} | NOT_SERVED
    assert {(method, PARAMETER.sub("{}", route)) for method, route in routes} <= {
        (method, PARAMETER.sub("{}", route)) for method, route in served
    }


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_a_target_of_make_that_is_named_is_there(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = [match[1] for code in codes(page) if (match := re.match(r"make ([a-z-]+)", code))]
    assert not [target for target in targets if f"\n{target}:" not in makefile]


def test_the_metrics_page_names_every_metric() -> None:
    source = (ROOT / "src" / "cache_dit_serving" / "jobs" / "metrics.py").read_text()
    page = (ROOT / "docs" / "metrics.md").read_text()
    names = re.findall(r'"(cache_dit_serving_\w+)"', source)
    assert names
    assert not [name for name in names if name not in page]


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_within_the_project_lead_somewhere(page: Path) -> None:
    dead = []
    for file, anchor in LINK.findall(FENCED.sub("", page.read_text(encoding="utf-8"))):
        target = page.parent / file if file else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            dead.append(f"{file}#{anchor}")
    assert not dead


@pytest.mark.parametrize("page", MEASURED, ids=lambda page: page.name)
def test_a_page_of_measurements_is_written_by_the_script_that_it_names(page: Path) -> None:
    script = re.search(r"^Written by `python -m benchmarks\.(\w+)` \(", page.read_text(), re.MULTILINE)
    assert script, page.name
    source = (ROOT / "benchmarks" / f"{script[1]}.py").read_text(encoding="utf-8")
    assert f'"docs" / "benchmarks" / "{page.name}"' in source
    assert f"Writes docs/benchmarks/{page.name}" in source
