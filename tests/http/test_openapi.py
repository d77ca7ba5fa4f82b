"""The API's document against the API: valid as what it declares, and held to by every route under made-up requests."""

from __future__ import annotations

import os
import re
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import Case
from schemathesis.generation.feedback import NO_FEEDBACK
from schemathesis.pytest._test_builder import build_operation_test
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from cache_dit_serving.api.docs import openapi_document
from cache_dit_serving.api.matching import row_of
from cache_dit_serving.api.operation import BELOW
from cache_dit_serving.api.routes import OPERATIONS
from tests.support.server import ROOT, Server
from tools.snapshot import OPENAPI, rendered

EXAMPLES = int(os.environ.get("CONFORMANCE_EXAMPLES", "10"))
"""Made-up requests of each kind for an operation; schemathesis adds some hundred at the edges of each field."""
SETTINGS = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
]
DOCUMENT = openapi_document(OPERATIONS)
API = schemathesis.openapi.from_dict(DOCUMENT)


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
    "operation",
    [
        pytest.param(
            API[path][method],
            id=f"{method.upper()} {path}",
            # Hundreds of requests that are drawn
            marks=[pytest.mark.slow] if row_of(method.upper(), path).generates else [],
        )
        for path, methods in DOCUMENT["paths"].items()
        for method in methods
    ],
)
def test_every_route_keeps_to_the_document(operation: Any, limited: Server) -> None:
    """Requests of each kind for one operation.

    `API.parametrize()` of schemathesis 4.32.5 with pytest 9.2 gives the tests of all operations one id, of which xdist
    runs one. It also makes up all requests as tests are collected, in each test process.
    """

    def answered(case: Case[Any]) -> None:
        response = case.call(base_url=limited.url, session=limited.session)
        assert response.status_code != 500, response.text  # 503 and 504 are answers of the document
        case.validate_response(response, checks=CHECKS)

    build_operation_test(
        config=API.config,
        operation=operation,
        test_func=answered,
        given_kwargs={},
        feedback=NO_FEEDBACK,
        explicit_settings=SETTINGS,
    )()
