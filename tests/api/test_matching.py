"""The matcher of the table of routes: one answer for keys, body checks, dispatch, metrics and log."""

from __future__ import annotations

import re

import pytest

from cache_dit_serving.api.matching import UNKNOWN_ROUTE, Match, allowed_methods, match, route_of
from cache_dit_serving.api.operation import Operation
from cache_dit_serving.api.routes import OPERATIONS
from cache_dit_serving.errors import InvalidRequest, MethodNotAllowed, NotFound


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda each: f"{each.method} {each.route}")
def test_each_row_is_found_by_its_path(operation: object) -> None:
    found = match(operation.method, operation.route.replace("{", "").replace("}", ""))  # type: ignore[attr-defined]
    assert isinstance(found, Match)
    assert found.operation is operation


def test_a_slash_at_the_end_does_not_count() -> None:
    for path in ("/generate/", "/jobs/x/"):
        found = match("GET" if "jobs" in path else "POST", path)
        assert isinstance(found, Match)
        assert found.path == path[:-1]
    models = match("GET", "/v1/models/")
    assert isinstance(models, Match)
    assert models.operation.route == "/v1/models"


def test_parts_of_the_path_have_their_names() -> None:
    found = match("HEAD", "/jobs/a.b/outputs/1")
    assert isinstance(found, Match)
    assert found.parameters == {"id": "a.b", "number": "1"}
    below = match("GET", "/v1/models/black-forest-labs/FLUX.1-dev")
    assert isinstance(below, Match)
    assert below.parameters == {"path": "black-forest-labs/FLUX.1-dev"}


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda each: f"{each.method} {each.route}")
def test_a_path_that_is_spelt_as_its_route_has_its_parts_too(operation: Operation) -> None:
    found = match(operation.method, operation.route)
    assert isinstance(found, Match | NotFound)
    if isinstance(found, Match):
        assert found.parameters == {name: f"{{{name}}}" for name in re.findall(r"{(\w+)}", operation.route)}


@pytest.mark.parametrize(
    "path",
    [
        "", "//", "//generate", "/generate//", "/GENERATE", "/generate;x", "/./generate", "/jobs/../flush_cache",
        "/jobs//", "/outputs/", "/outputs/a//b", "/outputs/../secret", "/outputs/a/..", "/outputs/./a", "http://x/jobs",
    ],
)  # fmt: skip
def test_other_spellings_of_a_path_have_no_row(path: str) -> None:
    assert isinstance(match("GET", path), NotFound)
    assert isinstance(match("POST", path), NotFound)
    assert route_of(path) == UNKNOWN_ROUTE


@pytest.mark.parametrize("control", ["\n", "\r", "\0", "\t", "\x1f", "\x7f", "\x85", "\u2028"])
@pytest.mark.parametrize("path", ["/flush_cache{}", "{}/flush_cache", "/loras/a{}b", "/jobs/{}", "/nowhere{}"])
def test_a_control_character_in_a_path_is_refused(path: str, control: str) -> None:
    with pytest.raises(InvalidRequest, match="control character"):
        match("POST", path.format(control))
    assert route_of(path.format(control)) == UNKNOWN_ROUTE


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("/v1/v1/images/generations", "ends in /v1 once"),
        ("/images/generations", "ends in /v1;"),
        ("/v1/chat/completions", "POST /v1/images/generations"),
        ("/genrate", "did you mean /generate?"),
        ("/v1/image/generation", "did you mean /v1/images/generations?"),
        ("/x" * 1000, "no such route; GET /docs"),
    ],
)
def test_a_known_mistake_has_its_cure(path: str, hint: str) -> None:
    found = match("POST", path)
    assert isinstance(found, NotFound)
    assert hint in found.message


def test_another_method_is_not_allowed() -> None:
    assert isinstance(match("GET", "/generate"), MethodNotAllowed)
    assert isinstance(match("OPTIONS", "/jobs"), MethodNotAllowed)
    assert allowed_methods("/jobs") == ["GET", "HEAD", "POST"]
    assert allowed_methods("/jobs/x") == ["DELETE", "GET", "HEAD", "PATCH"]
    assert allowed_methods("/nowhere") == []
