"""The one matcher of requests and rows: keys, body checks, limits, dispatch, metrics and log follow it."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.datastructures import URLPath
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, NoMatchFound, request_response
from starlette.routing import Match as Fit
from starlette.types import Receive, Scope, Send

from cache_dit_serving.api.answering import error_response
from cache_dit_serving.api.docs import openapi_document
from cache_dit_serving.api.operation import BELOW, Operation
from cache_dit_serving.api.request_state import state_of
from cache_dit_serving.api.routes import OPENAI_BASE, OPERATIONS, TEXT_ROUTES
from cache_dit_serving.errors import InvalidRequest, MethodNotAllowed, NotFound, ServingError
from cache_dit_serving.findings import nearest_key

UNKNOWN_ROUTE = "unknown"
"""Label of every path that is no route's."""
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
EMPTY_OR_DOTS = re.compile(r"(^|/)\.{0,2}(/|$)")
"""A segment that some servers and file systems leave out or resolve."""

LONGEST_HINTED = 100
"""Greatest length of a path that is compared with the routes, characters."""


def _pattern(route: str) -> re.Pattern[str]:
    """Return the regular expression of a route's paths."""
    segment = r"(?P<\1>[^/]+)"
    below = BELOW.replace("{path}", r"(?P<path>.+)")
    exact = re.escape(route.removesuffix(BELOW)).replace(r"\{", "{").replace(r"\}", "}")
    return re.compile(re.sub(r"\{(\w+)\}", segment, exact) + (below if route.endswith(BELOW) else ""))


_ROWS: dict[str, dict[str, Operation]] = {}
for _operation in OPERATIONS:
    _ROWS.setdefault(_operation.route, {})[_operation.method] = _operation
_PATTERNS = {route: _pattern(route) for route in _ROWS if "{" in route}


@dataclass(frozen=True)
class Match:
    """A request's row of the table."""

    operation: Operation
    path: str
    """The request's path without a slash at its end."""
    parameters: dict[str, str]
    """Parts of the path, by their names in the route."""


@dataclass(frozen=True)
class _Found:
    """A path's route."""

    route: str
    path: str
    parameters: dict[str, str]


def _find(path: str) -> _Found | None:
    if not path.endswith("//") and path != "/":
        path = path.removesuffix("/")
    if path in _ROWS and path not in _PATTERNS:
        return _Found(path, path, {})
    for route, pattern in _PATTERNS.items():
        if found := pattern.fullmatch(path):
            below = found.groupdict().get("path", "-")
            return None if EMPTY_OR_DOTS.search(below) else _Found(route, path, found.groupdict())
    return None


def match(method: str, path: str) -> Match | NotFound | MethodNotAllowed:
    """Return the row for a request, or the error that answers it where there is none.

    Args:
        path: percent-decoded. One slash at its end does not count.

    Raises:
        InvalidRequest: the path holds control characters, on which routers, logs and databases disagree.
    """
    if CONTROL.search(path):
        raise InvalidRequest("the path holds a control character; remove it (percent-encoded ones count too)")
    found = _find(path)
    if found is None:
        return NotFound(f"there is no such route; {_hint(path)}GET /docs lists them")
    operation = _ROWS[found.route].get("GET" if method == "HEAD" else method)
    if operation is None:
        return MethodNotAllowed("this route does not take this method; GET /docs lists those it takes")
    return Match(operation, found.path, found.parameters)


def _hint(path: str) -> str:
    """Return the remedy for a path that clients send by a known mistake, or the route that is spelt most like it."""
    if path.startswith(f"{OPENAI_BASE}{OPENAI_BASE}/"):
        return f"the base URL of OpenAI's client ends in {OPENAI_BASE} once; "
    if f"{OPENAI_BASE}{path}" in _ROWS:
        return f"the base URL of OpenAI's client ends in {OPENAI_BASE}; "
    if path in TEXT_ROUTES:
        return "this server makes pictures, videos and sounds: POST /v1/images/generations; "
    nearest = nearest_key(path, list(_ROWS)) if len(path) < LONGEST_HINTED else None
    return f"did you mean {nearest}? " if nearest else ""


def row_of(method: str, route: str) -> Operation:
    """Return the row of a route that there is."""
    return _ROWS[route][method]


def route_of(path: str) -> str:
    """Return a path's route or :data:`UNKNOWN_ROUTE`: one of a few names for all paths that clients make up."""
    found = _find(path)
    return found.route if found and not CONTROL.search(path) else UNKNOWN_ROUTE


def allowed_methods(path: str) -> list[str]:
    """Return the methods of the `Allow` header of a path; none for a path without a route."""
    methods = _ROWS.get(route_of(path), {})
    return sorted({*methods, "HEAD"} if "GET" in methods else methods)


def matched(scope: Scope, found: Match) -> Scope:
    """Return a request's scope with its path as its row has it, for the routers below."""
    return {**scope, "path": found.path, "path_params": found.parameters}


class _TableRoute(BaseRoute):
    """The handlers of the table, each for the requests that :func:`match` found its row for."""

    def matches(self, scope: Scope) -> tuple[Fit, Scope]:
        operation = state_of(scope).operation
        if operation is None or operation.handler is None:
            return Fit.NONE, {}
        return Fit.FULL, {"path_params": scope["path_params"]}

    def url_path_for(self, name: str, /, **path_params: object) -> URLPath:
        raise NoMatchFound(name, path_params)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        operation = state_of(scope).operation
        assert operation is not None
        assert operation.handler is not None
        await request_response(operation.handler)(scope, receive, send)


@functools.cache
def document() -> bytes:
    """Return the OpenAPI document. The first call takes a tenth of a second, which no start waits for."""
    return bytes(JSONResponse(openapi_document(OPERATIONS)).body)


def mounted_routes() -> Starlette:
    """Return the app to mount at "/", for the rows that have a handler."""

    async def serving_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, ServingError)
        return error_response(error, state_of(request.scope).id)

    app = Starlette(routes=[_TableRoute()], exception_handlers={ServingError: serving_error})
    app.state.openapi = document
    return app
