"""A row of the table of routes: everything that the server knows of one method of one route."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
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
INFRASTRUCTURE = "Infrastructure"
"""Tag of the routes that probes and scrapers call."""
BELOW = "/{path}"
"""Ends the route of everything below a folder."""

Errors = tuple[type[ServingError], ...]
REQUEST_ERRORS: Errors = (InvalidRequest,)
"""On every route: control characters in the path, headers that contradict each other, another host."""
Example = Mapping[str, Any]
"""Fields of a request."""
BODY_ERRORS: Errors = (InvalidRequest, BodyTooSlow, BodyTooLarge, UnsupportedMediaType, ClientGone)


class Respelt(NamedTuple):
    """JSON of another dialect in the fields of a model."""

    tree: dict[str, Any]
    sent_as: SentAs = SentAs()
    warnings: tuple[RequestWarning, ...] = ()


@dataclass(frozen=True)
class JsonBody:
    """A body that is one JSON object, checked before anything is done with it."""

    model: type[BaseModel]
    example: Example
    """A request that every server of such a model answers, for the document."""
    limit: Literal["max_body_bytes", "max_upload_bytes"] = "max_body_bytes"
    """The setting of `limits` that bounds its size."""
    form: bool = False
    """Whether it may come as a form too, with pictures as files."""
    respelt: Callable[[dict[str, Any], bool], Respelt] = lambda tree, lenient: Respelt(tree)
    """Puts JSON of another dialect into the model's fields; the second argument says whether leniently."""

    @property
    def draws(self) -> bool:
        """Whether it asks for a generation."""
        return "prompt" in self.model.model_fields


@dataclass(frozen=True)
class Operation:
    """One method of one route."""

    method: Literal["GET", "POST", "DELETE"]
    route: str
    """Its path as OpenAPI writes it."""
    summary: str = ""
    """Empty for what the document leaves out."""
    answer: type[BaseModel] | tuple[str, ...] = ("text/plain",)
    """A model that is answered as JSON, or the media types of something else."""
    errors: Errors = ()
    """Beside those of the body. A status of 400 and more is one of these."""
    body: JsonBody | None = None
    """None: no body is read."""
    tag: str = "Server"
    status: int = 200
    handler: Callable[[Request], Awaitable[Response]] | None = None
    """None: BentoML answers it, by itself or by a `@bentoml.api` method of the service."""

    query: Mapping[str, str] = field(default_factory=dict)
    """What may stand behind the path, each with what it means."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """What may be sent as a header, each with what it means."""
    scope: Scope = "generate"
    """What an API key must be for, where there are keys."""
    signed: bool = False
    """Whether the signature of its URL stands for a key: browsers fetch pictures and events without one."""
    also: Mapping[int, type[BaseModel] | None] = field(default_factory=dict)
    """Other answers that are no errors, by status; None: without a body."""

    @property
    def draws(self) -> bool:
        """Whether it asks for a generation."""
        return self.body is not None and self.body.draws

    @property
    def is_probe(self) -> bool:
        """Whether an orchestrator or a scraper calls it, under whatever address it has for this server."""
        return self.tag == INFRASTRUCTURE

    @property
    def all_errors(self) -> Errors:
        return (BODY_ERRORS if self.body else REQUEST_ERRORS) + self.errors
