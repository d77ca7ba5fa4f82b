"""The table of routes: what body each takes, and the name that stands for it in metrics and in the log."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel

from cache_dit_serving.schemas import GenerateRequest, NoFields

UNKNOWN_ROUTE = "unknown"
"""Stands for every path that is no route's."""
BELOW = "/{path}"
"""Ends the route of everything below a folder."""


@dataclass(frozen=True)
class Operation:
    """One method of one route."""

    method: Literal["GET", "POST"]
    route: str
    """Its path as OpenAPI writes it."""
    body: type[BaseModel] | None = None
    """What a POST takes as its JSON body."""


OPERATIONS = (
    Operation("POST", "/generate", GenerateRequest),
    Operation("POST", "/compare", GenerateRequest),
    Operation("GET", "/health"),
    Operation("POST", "/health", NoFields),
    Operation("GET", "/get_model_info"),
    Operation("POST", "/model_info", NoFields),
    Operation("GET", "/capabilities"),
    Operation("POST", "/flush_cache", NoFields),
    Operation("GET", "/outputs" + BELOW),
    Operation("GET", "/"),
    Operation("GET", "/docs"),
    Operation("GET", "/openapi.json"),
    # BentoML's own
    Operation("GET", "/livez"),
    Operation("GET", "/readyz"),
    Operation("GET", "/healthz"),
    Operation("GET", "/metrics"),
    Operation("GET", "/docs.json"),
    Operation("GET", "/schema.json"),
    Operation("GET", "/static_content" + BELOW),
)
_BODIES: dict[tuple[str, str], type[BaseModel] | None] = {
    (operation.method, operation.route): operation.body for operation in OPERATIONS
}
_ROUTES = {operation.route for operation in OPERATIONS}
_FOLDERS = tuple(route for route in _ROUTES if route.endswith(BELOW))


def route_of(path: str) -> str:
    """The route of a request's path, or :data:`UNKNOWN_ROUTE`: one of a few names, whatever clients ask for."""
    if path in _ROUTES:
        return path
    return next((route for route in _FOLDERS if path.startswith(route.removesuffix("{path}"))), UNKNOWN_ROUTE)


def body_of(method: str, path: str) -> type[BaseModel] | None:
    """The model of the body that a request must have; None where no body is read."""
    return _BODIES.get((method, path))


def allowed_methods(path: str) -> list[str]:
    """What the `Allow` header of a path lists; empty for a path that is no route's."""
    route = route_of(path)
    methods = [operation.method for operation in OPERATIONS if operation.route == route]
    return sorted({*methods, "HEAD"} if "GET" in methods else methods)
