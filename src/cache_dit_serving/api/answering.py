"""Answers in the contract's shape: a model as JSON, and an error."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel
from starlette.responses import JSONResponse, Response

from cache_dit_serving.errors import ServingError
from cache_dit_serving.schemas.answers import json_around

JSON = "application/json"
REQUEST_ID_HEADER = "X-Request-ID"
TRACE_ID_HEADER = "X-Trace-ID"


def answered(answer: BaseModel, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return an answer as its model writes it: one of `schemas.answers.Answer` leaves keys out that are null."""
    return Response(json_around(answer), status, headers, JSON)


def error_response(error: ServingError, request_id: str) -> JSONResponse:
    """Return an error's answer."""
    return JSONResponse(
        error.body(request_id), status_code=error.status, headers={**error.headers, REQUEST_ID_HEADER: request_id}
    )
