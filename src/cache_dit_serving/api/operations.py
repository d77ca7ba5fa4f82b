"""The table of routes: what each takes and answers. Body checks, OpenAPI, `Allow`, metrics and the log read it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel

from cache_dit_serving.errors import (
    BodyTooLarge,
    BodyTooSlow,
    CacheNotEngaged,
    ClientGone,
    DeadlineExceeded,
    InternalError,
    InvalidRequest,
    NotFound,
    NotReady,
    QueueFull,
    RangeNotSatisfiable,
    ServingError,
    UnsupportedMediaType,
)
from cache_dit_serving.media.formats import MEDIA_TYPES
from cache_dit_serving.schemas.answers import (
    Capabilities,
    CompareResponse,
    FlushResponse,
    GenerateResponse,
    HealthResponse,
    ModelInfo,
)
from cache_dit_serving.schemas.request import GenerateRequest, NoFields

UNKNOWN_ROUTE = "unknown"
"""Stands for every path that is no route's."""
BELOW = "/{path}"
"""Ends the route of everything below a folder."""

Errors = tuple[type[ServingError], ...]
BODY_ERRORS: Errors = (InvalidRequest, BodyTooSlow, BodyTooLarge, UnsupportedMediaType, ClientGone)
GENERATION_ERRORS: Errors = (CacheNotEngaged, QueueFull, InternalError, NotReady, DeadlineExceeded)


@dataclass(frozen=True)
class Operation:
    """One method of one route."""

    method: Literal["GET", "POST"]
    route: str
    """Its path as OpenAPI writes it."""
    summary: str = ""
    """Empty for what the document leaves out."""
    answer: type[BaseModel] | tuple[str, ...] = ("text/plain",)
    """A model that is answered as JSON, or the media types of something else."""
    errors: Errors = ()
    """Beside those of the body. A status of 400 and more is one of these."""
    body: type[BaseModel] | None = None
    """What a POST takes as its JSON body."""
    tag: str = "Server"
    status: int = 200
    mounted: bool = False
    """Whether `api.routes` answers it; the others are BentoML's or `@bentoml.api` methods."""

    @property
    def all_errors(self) -> Errors:
        return (BODY_ERRORS if self.body else ()) + self.errors


HEALTH = "Whether the server can generate, and why not."
MODEL = "The loaded model and what it takes."
CAPABILITIES = "What this server accepts, for programs."
DRAW = "Generation"
INFRASTRUCTURE = "Infrastructure"
OPERATIONS = (
    Operation(
        "POST", "/generate", "Draw pictures from a prompt.", GenerateResponse, GENERATION_ERRORS, GenerateRequest, DRAW
    ),
    Operation(
        "POST",
        "/compare",
        "Draw one seed with the cache and without, and measure how far apart the pictures are.",
        CompareResponse,
        GENERATION_ERRORS,
        GenerateRequest,
        DRAW,
    ),
    Operation(
        "GET",
        "/outputs" + BELOW,
        "A picture that a request wanted as a URL.",
        tuple(MEDIA_TYPES.values()),
        (InvalidRequest, NotFound, RangeNotSatisfiable),
        tag=DRAW,
        mounted=True,
    ),
    Operation(
        "GET", "/capabilities", "What this server accepts, for programs.", Capabilities, (NotReady,), mounted=True
    ),
    Operation("GET", "/get_model_info", MODEL, ModelInfo, (NotReady,), mounted=True),
    Operation("POST", "/model_info", MODEL, ModelInfo, (NotReady,), NoFields),
    Operation("GET", "/health", HEALTH, HealthResponse, (NotReady,), mounted=True),
    Operation("POST", "/health", HEALTH, HealthResponse, (NotReady,), NoFields),
    Operation(
        "POST", "/flush_cache", "Free the cached activations.", FlushResponse, (InternalError, NotReady), NoFields
    ),
    Operation("GET", "/", "To the API's documentation.", (), status=307, mounted=True),
    Operation("GET", "/docs", "The API's documentation, for people.", ("text/html",), mounted=True),
    Operation("GET", "/openapi.json", "The API's documentation, for programs.", ("application/json",), mounted=True),
    # BentoML's own
    Operation("GET", "/livez", "Whether the worker runs.", tag=INFRASTRUCTURE),
    Operation("GET", "/readyz", "Whether it can generate.", errors=(NotReady,), tag=INFRASTRUCTURE),
    Operation("GET", "/metrics", "Metrics in Prometheus' text format.", tag=INFRASTRUCTURE),
    Operation("GET", "/healthz"),
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
