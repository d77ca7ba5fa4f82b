"""What every door needs to answer: the request's id, times, and an error in the contract's shape."""

from __future__ import annotations

from starlette.responses import JSONResponse
from starlette.types import Scope

from cache_dit_serving.errors import ServingError

REQUEST_ID_HEADER = "X-Request-ID"


def request_id_of(scope: Scope) -> str:
    """The id of a request that came through :class:`envelope.Envelope`."""
    return str(scope.get("state", {}).get("request_id", ""))


def error_response(error: ServingError, request_id: str) -> JSONResponse:
    return JSONResponse(
        error.body(request_id), status_code=error.status, headers={**error.headers, REQUEST_ID_HEADER: request_id}
    )
