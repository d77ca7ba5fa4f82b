"""The documentation names what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from cache_dit_serving.config.settings import Settings
from cache_dit_serving.schemas.request import GenerateRequest
from tests.support.server import ROOT

PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


def leaves(model: type[BaseModel]) -> list[str]:
    names = []
    for name, field in model.model_fields.items():
        nested = [part for part in getattr(field.annotation, "__args__", (field.annotation,)) if isinstance(part, type)]
        sections = [part for part in nested if issubclass(part, BaseModel)]
        names += [leaf for section in sections for leaf in leaves(section)] or [name]
    return names


def test_the_configuration_page_names_every_setting() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    missing = [name for name in leaves(Settings) if f"`{name}`" not in page and f"## {name}" not in page]
    assert not missing


def test_the_api_page_names_every_field_of_a_request() -> None:
    page = (ROOT / "docs" / "api.md").read_text()
    assert not [name for name in GenerateRequest.model_fields if f"`{name}`" not in page]


def test_the_metrics_page_names_every_metric() -> None:
    source = (ROOT / "src" / "cache_dit_serving" / "jobs" / "metrics.py").read_text()
    page = (ROOT / "docs" / "metrics.md").read_text()
    names = re.findall(r'"(cache_dit_serving_\w+)"', source)
    assert names
    assert not [name for name in names if name not in page]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_within_the_project_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert not [target for target in targets if not (page.parent / target).exists()]
