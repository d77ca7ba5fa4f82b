"""The API's document against the API: valid as what it declares, and held to by every route under made-up requests."""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import pytest
import requests

from cache_dit_serving.api.docs import openapi_document
from cache_dit_serving.api.matching import Match, match, row_of
from cache_dit_serving.api.operation import BELOW
from cache_dit_serving.api.routes import OPERATIONS
from cache_dit_serving.errors import Forbidden, InvalidRequest, Unauthorized
from tests.support.conformance_keys import KEYS
from tests.support.server import ROOT, Server, session
from tools.snapshot import OPENAPI, rendered

if TYPE_CHECKING:
    from schemathesis import Case

EXAMPLES = int(os.environ.get("CONFORMANCE_EXAMPLES", "10"))
"""Made-up requests of each kind for an operation; schemathesis adds some hundred at the edges of each field."""
EVERY_EDGE = "CONFORMANCE_EXAMPLES" in os.environ
"""Whether each route gets all wrong values of a field that has the same schema at a route before it."""
SENDERS = {"admin": "", **({"generate": " by a key of scope generate", "": " without a key"} if KEYS else {})}
"""Scope of a sender's key, empty for one without -> end of its tests' names. Without keys, all may do everything."""
REQUEST_S = 180
"""Patience with an answer, seconds: schemathesis has ten, in which a busy machine loads no model."""
DOCUMENT = openapi_document(OPERATIONS)


@functools.cache
def api() -> Any:
    """The document as schemathesis has it. That takes each process that collects the tests a second to import."""
    import schemathesis

    return schemathesis.openapi.from_dict(DOCUMENT)


class Edges:
    """Wrong values of an operation's fields.

    A field with the same schema at several routes has all of its wrong values sent to the first one in the document.
    The others get one value of each kind, such as a wrong type, at each place in the field. `cache`, with its twenty
    fields, is part of six bodies, each as JSON and as a form.
    """

    def __init__(self, method: str, path: str, *, every: bool) -> None:
        """
        Args:
            every: whether all wrong values are due at each route.
        """
        self._every = every
        self._sent: set[tuple[object, ...]] = set()
        before: set[tuple[str, str, str]] = set()
        for each_path, methods in DOCUMENT["paths"].items():
            for each_method, operation in methods.items():
                fields = set(_fields(operation))
                if (each_method, each_path) == (method, path):
                    self._shared = {(kind, name) for kind, name, _ in fields & before}
                    return
                before |= fields

    def is_due(self, case: Case[Any]) -> bool:
        """Return False for a wrong value of a shared field when one of its kind has been sent."""
        from schemathesis.generation.meta import CoveragePhaseData

        if self._every or case.meta is None or not case.meta.generation.mode.is_negative:
            return True
        data = case.meta.phase.data
        if not isinstance(data, CoveragePhaseData):
            return True
        field = re.match("/properties/([^/]+)", data.location or "")
        if not field or (case.media_type, field.group(1)) not in self._shared:
            return True
        kind = (case.media_type, data.scenario, data.location, data.description)
        due = kind not in self._sent
        self._sent.add(kind)
        return due


def _fields(operation: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Media type, name and schema of each field of an operation's body."""
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        schema = content.get("schema", {})
        if "$ref" in schema:
            schema = DOCUMENT["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        for name, field in schema.get("properties", {}).items():
            yield kind, name, json.dumps(field, sort_keys=True)


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


def sender_of(server: Server, scope: str) -> requests.Session:
    """The session of a sender whose key has a scope; that of the server for an administrator."""
    if scope == "admin":
        return server.session
    opened = session()
    if scope:
        opened.headers["Authorization"] = f"Bearer {KEYS[scope]}"
    return opened


def refusals(request: requests.PreparedRequest) -> set[int]:
    """Return the statuses by which the table of routes refuses a request for its key alone; none if it does not."""
    if not KEYS:
        return set()
    scopes = {f"Bearer {key}": scope for scope, key in KEYS.items()}
    scope = scopes.get(str(request.headers.get("Authorization")))
    try:
        found = match(str(request.method), unquote(urlsplit(str(request.url)).path))
    except InvalidRequest:
        return {InvalidRequest.status}
    row = found.operation if isinstance(found, Match) else None
    if row is not None and row.open_as is not None:
        return set()
    if scope is None:
        # An address that may be signed is looked at, and no made-up one is.
        return {Unauthorized.status, InvalidRequest.status} if row and row.signed else {Unauthorized.status}
    return {Forbidden.status} if row is not None and row.scope == "admin" != scope else set()


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [
        pytest.param(
            method,
            path,
            scope,
            id=f"{method.upper()} {path}{by}",
            # Hundreds of requests that are drawn
            marks=[pytest.mark.slow] if row_of(method.upper(), path).generates else [],
        )
        for path, methods in DOCUMENT["paths"].items()
        for method in methods
        for scope, by in SENDERS.items()
    ],
)
def test_every_route_keeps_to_the_document(method: str, path: str, scope: str, limited: Server) -> None:
    """Requests of each kind for one operation.

    Where there are keys, those of a lesser sender are a tenth: what it may not do is refused before it is read.

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
    ]
    # One that is refused for its key alone is not read further.
    held_to_if_read = [*held_to, checks.negative_data_rejection, checks.unsupported_method]
    every = scope == "admin"
    edges = Edges(method, path, every=EVERY_EDGE and every)
    sender = sender_of(limited, scope)

    def answered(case: Case[Any]) -> None:
        if not edges.is_due(case):
            return
        response = case.call(base_url=limited.url, session=sender, timeout=REQUEST_S)
        assert response.status_code != 500, response.text  # 503 and 504 are answers of the document
        if refused := refusals(response.request):
            assert response.status_code in refused, f"{scope}: {response.text}"
        case.validate_response(response, checks=held_to if refused else held_to_if_read)

    build_operation_test(
        config=api().config,
        operation=api()[path][method],
        test_func=answered,
        given_kwargs={},
        feedback=NO_FEEDBACK,
        explicit_settings=settings(
            max_examples=EXAMPLES if every else max(1, EXAMPLES // 10),
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=True,
        ),
    )()
