"""The API's document against the API: valid as what it declares, and held to by every route under made-up requests."""

from __future__ import annotations

import functools
import os
import re
from typing import TYPE_CHECKING, Any

import pytest

from cache_dit_serving.api.docs import openapi_document
from cache_dit_serving.api.matching import row_of
from cache_dit_serving.api.operation import BELOW
from cache_dit_serving.api.routes import OPERATIONS
from tests.support.server import ROOT, Server
from tools.snapshot import OPENAPI, rendered

if TYPE_CHECKING:
    from schemathesis import Case

EXAMPLES = int(os.environ.get("CONFORMANCE_EXAMPLES", "10"))
"""Made-up requests of each kind for an operation; schemathesis adds some hundred at the edges of each field."""
REQUEST_S = 180
"""Patience with an answer, seconds: schemathesis has ten, in which a busy machine loads no model."""
DOCUMENT = openapi_document(OPERATIONS)


@functools.cache
def api() -> Any:
    """The document as schemathesis has it. That takes each process that collects the tests a second to import."""
    import schemathesis

    return schemathesis.openapi.from_dict(DOCUMENT)


def test_the_document_is_valid() -> None:
    # Here: it takes each process that collects the tests a second.
    from openapi_spec_validator import OpenAPIV31SpecValidator, validate

    assert DOCUMENT["openapi"].startswith("3.1")
    validate(DOCUMENT, cls=OpenAPIV31SpecValidator)


def test_the_document_changes_only_on_purpose() -> None:
    assert OPENAPI.read_text(encoding="utf-8") == rendered(DOCUMENT), (
        "the API has changed: if it should, write the snapshot anew with python -m tools.snapshot"
    )


def test_the_table_of_routes_is_the_one_in_the_documents() -> None:
    table = (ROOT / "docs" / "api.md").read_text(encoding="utf-8").partition("\n## ")[0]
    described = set(re.findall(r"`(?:GET |POST )?(/[a-z0-9_./{}]*)", table)) - {"/"}
    served = {route.removesuffix(BELOW) + ("/..." if route.endswith(BELOW) else "") for route in DOCUMENT["paths"]}
    assert described == served - {"/"}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        pytest.param(
            method,
            path,
            id=f"{method.upper()} {path}",
            # Hundreds of requests that are drawn
            marks=[pytest.mark.slow] if row_of(method.upper(), path).generates else [],
        )
        for path, methods in DOCUMENT["paths"].items()
        for method in methods
    ],
)
def test_every_route_keeps_to_the_document(method: str, path: str, limited: Server) -> None:
    """Requests of each kind for one operation.

    `API.parametrize()` of schemathesis 4.32.5 with pytest 9.2 gives the tests of all operations one id, of which xdist
    runs one. It also makes up all requests as tests are collected, in each test process.
    """
    from hypothesis import HealthCheck, settings
    from schemathesis.generation.feedback import NO_FEEDBACK
    from schemathesis.pytest._test_builder import build_operation_test
    from schemathesis.specs.openapi import checks

    held_to = [
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_schema_conformance,
        checks.negative_data_rejection,
        checks.unsupported_method,
    ]

    def answered(case: Case[Any]) -> None:
        response = case.call(base_url=limited.url, session=limited.session, timeout=REQUEST_S)
        assert response.status_code != 500, response.text  # 503 and 504 are answers of the document
        case.validate_response(response, checks=held_to)

    build_operation_test(
        config=api().config,
        operation=api()[path][method],
        test_func=answered,
        given_kwargs={},
        feedback=NO_FEEDBACK,
        explicit_settings=settings(
            max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
        ),
    )()
