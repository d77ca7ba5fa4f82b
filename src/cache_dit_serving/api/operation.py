"""Row of the table of routes: everything that the server knows of one method of one route."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Container, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from cache_dit_serving.config.keys import Scope
from cache_dit_serving.engine.sent_as import SentAs
from cache_dit_serving.errors import (
    BodyTooLarge,
    BodyTooSlow,
    ClientGone,
    InvalidRequest,
    ServingError,
    UnsupportedMediaType,
)
from cache_dit_serving.schemas.answers import RequestWarning

UNSUPPORTED_FIELDS_HEADER = "X-Unsupported-Fields"
BELOW = "/{path}"
"""End of a route that holds every path below a folder."""

Errors = tuple[type[ServingError], ...]
REQUEST_ERRORS: Errors = (InvalidRequest,)
"""Errors of every route: control characters in the path, contradictory headers, another host."""
Example = Mapping[str, Any]
"""Fields of a request."""
BODY_ERRORS: Errors = (InvalidRequest, BodyTooSlow, BodyTooLarge, UnsupportedMediaType, ClientGone)
OpenGroup = Literal["health", "metrics", "docs"]
"""Group of routes that the setting `server.open_routes` can name."""
Content = type[BaseModel] | tuple[str, ...]
"""A model that is answered as JSON, or the media types of other bytes; an empty tuple: no body."""


class Respelt(NamedTuple):
    """JSON of another dialect in the fields of a model."""

    tree: dict[str, Any]
    sent_as: SentAs = SentAs()
    warnings: tuple[RequestWarning, ...] = ()


class FormFile(NamedTuple):
    """File that a form may hold."""

    name: str
    """Name in the document and in errors."""
    field: str
    """Field of the request that it fills."""
    many: bool = False
    """True if a form may hold several."""
    media_type: str = "image/*"
    also: tuple[str, ...] = ()
    """Other names that clients send it under."""

    @property
    def spellings(self) -> tuple[str, ...]:
        """All names that are read; some clients write those of a list with `[]`."""
        names = (self.name, self.field, *self.also)
        return (*names, *(f"{name}[]" for name in names)) if self.many else names


@dataclass(frozen=True)
class JsonBody:
    """A body that is one JSON object, checked before anything is done with it."""

    model: type[BaseModel]
    example: Example
    """A request that every server of such a model answers, for the document."""
    limit: Literal["max_body_bytes", "max_upload_bytes"] = "max_body_bytes"
    """Setting of `limits` that bounds its size."""
    form: tuple[FormFile, ...] | None = None
    """Files of the form that may stand for it, none or more; None: no form is taken."""
    respelt: Callable[[dict[str, Any], bool], Respelt] = lambda tree, lenient: Respelt(tree)
    """Puts JSON of another dialect into the model's fields; the second argument is true for a lenient reading."""
    optional: bool = False
    """True if a request may do without it, though the model has fields."""


class OtherAnswer(NamedTuple):
    """Answer of a status that is no error, beside the usual one."""

    description: str
    content: Content = ()


@dataclass(frozen=True)
class Operation:
    """One method of one route."""

    method: Literal["GET", "POST", "PATCH", "DELETE"]
    route: str
    """Its path as OpenAPI writes it."""
    summary: str = ""
    """Empty: the document leaves the row out."""
    answer: Content = ("text/plain",)
    errors: Errors = ()
    """Errors beside those of the body. A status of 400 and more is one of these."""
    body: JsonBody | None = None
    """None: no body is read."""
    tag: str = "Server"
    status: int = 200
    handler: Callable[[Request], Awaitable[Response]] | None = None
    """None: BentoML answers it, by itself or by a `@bentoml.api` method of the service."""

    query: Mapping[str, str] = field(default_factory=dict)
    """Query parameters, each with its meaning."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Request headers, each with its meaning."""
    also: Mapping[int, OtherAnswer] = field(default_factory=dict)
    """Other answers that are no errors, by status."""
    files: tuple[str, ...] = ()
    """Media types that are answered in place of JSON where `Accept` asks for one."""
    scope: Scope = "generate"
    """Scope that an API key needs, where there are keys."""
    open_as: OpenGroup | None = None
    """Group of `server.open_routes` that frees it from keys; None: it always needs one."""
    signed: bool = False
    """True if the signature of its URL stands for a key: browsers fetch images and events without one."""
    generates: bool = False
    """True if a request counts as a generation for a key's `requests_per_minute`."""
    any_host: bool = False
    """True if orchestrators and scrapers call it, under whatever address they have for this server."""
    routine: Container[int] = ()
    """Statuses that are logged at DEBUG: programs ask for it by themselves."""

    @property
    def all_errors(self) -> Errors:
        return (BODY_ERRORS if self.body else REQUEST_ERRORS) + self.errors
