"""The table of routes: each row holds all that is so of its route, and nothing else says it."""

from __future__ import annotations

import ast
import json
from typing import Any, get_args

import pytest

from cache_dit_serving.api.docs import openapi_document
from cache_dit_serving.api.matching import Match, match
from cache_dit_serving.api.operation import OpenGroup, Operation
from cache_dit_serving.api.origin import cors_options
from cache_dit_serving.api.routes import OPERATIONS
from cache_dit_serving.config.settings import ServerSettings
from cache_dit_serving.engine.inputs import IMAGES
from cache_dit_serving.engine.job_answers import answer_of
from cache_dit_serving.media.outputs import OUTPUTS_ROUTE
from cache_dit_serving.schemas.jobs import JobState
from tests.support.answers import check
from tests.support.envelope import Behind, ask
from tests.support.jobs import record
from tests.support.server import ROOT

FORMS = [operation for operation in OPERATIONS if operation.body is not None and operation.body.form is not None]
PNG = ("a.png", b"a picture", "image/png")


def by_route(operation: Operation) -> str:
    return operation.route


@pytest.mark.parametrize("operation", FORMS, ids=by_route)
def test_a_form_takes_the_files_of_its_row_as_the_document_shows_them(operation: Operation) -> None:
    body = operation.body
    assert body is not None
    assert body.form is not None
    document = openapi_document(OPERATIONS)
    described = document["paths"][operation.route]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    fields = document["components"]["schemas"][described["$ref"].rpartition("/")[2]]["properties"]
    shown = {
        name for name, schema in fields.items() if "binary" in (schema.get("format"), *schema.get("items", {}).values())
    }
    assert shown == {file.name for file in body.form}
    for file in body.form:
        assert file.field in body.model.model_fields
        for name in file.spellings:
            behind = Behind()
            files = [(name, PNG)] * (2 if file.many else 1)
            answer = ask("POST", operation.route, behind, data={"prompt": "a cat"}, files=files)
            assert answer.status_code == 200, answer.text
            read = json.loads(behind.seen[0][1])[file.field]
            assert read == (["upload:0", "upload:1"][: len(files)] if file.field == IMAGES else "upload:0")


@pytest.mark.parametrize("operation", FORMS, ids=by_route)
def test_another_file_is_refused_with_those_of_the_row(operation: Operation) -> None:
    assert operation.body is not None
    behind = Behind()
    answer = ask("POST", operation.route, behind, data={"prompt": "a cat"}, files=[("photo", PNG)])
    check(answer, 400, "photo", *(file.name for file in operation.body.form or ()))
    assert behind.seen == []


def test_a_picture_for_a_route_without_pictures_learns_where_they_go() -> None:
    for name in ("image", "image[]", "mask"):
        answer = ask("POST", "/v1/images/generations", Behind(), data={"prompt": "a cat"}, files=[(name, PNG)])
        check(answer, 400, name.removesuffix("[]"), "POST /v1/images/edits takes pictures")


def test_a_page_elsewhere_may_use_every_method() -> None:
    assert {row.method for row in OPERATIONS} == set(cors_options(["https://studio.example"])["allow_methods"])


def test_what_generates_counts_for_the_rate_limit() -> None:
    prompted = {row.route for row in OPERATIONS if row.body is not None and "prompt" in row.body.model.model_fields}
    assert {row.route for row in OPERATIONS if row.generates} == prompted


def test_the_groups_of_open_routes_are_those_that_the_operator_can_name() -> None:
    assert set(get_args(OpenGroup)) == set(ServerSettings().open_routes)
    assert {row.open_as for row in OPERATIONS} == {*get_args(OpenGroup), None}


def test_a_route_that_answers_files_says_so_of_ranges_and_of_object_storage() -> None:
    files = [row for row in OPERATIONS if isinstance(row.answer, tuple) and "image/png" in row.answer]
    assert len(files) == 3
    assert all({206, 307} <= row.also.keys() for row in files)


def test_the_links_of_answers_are_routes() -> None:
    done = answer_of(record("one", JobState.SUCCEEDED, files=("a.png", "b.png")))
    links = {link: "/jobs/{id}/outputs/{number}" for link in done.outputs} | {f"{OUTPUTS_ROUTE}/a": "/outputs/{path}"}
    assert len(links) == 3
    for link, route in links.items():
        found = match("GET", link)
        assert isinstance(found, Match)
        assert found.operation.route == route


def test_no_path_of_a_route_stands_outside_the_table() -> None:
    routes = {row.route for row in OPERATIONS} - {"/"}
    table = ROOT / "src/cache_dit_serving/api/routes.py"
    clients = ROOT / "src/cache_dit_serving/measure"  # of any server, not of this one alone
    found: list[Any] = [
        (file.relative_to(ROOT).as_posix(), node.lineno, node.value)
        for file in [ROOT / "service.py", *(ROOT / "src").rglob("*.py")]
        if file != table and clients not in file.parents
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in routes
    ]
    assert found == []
