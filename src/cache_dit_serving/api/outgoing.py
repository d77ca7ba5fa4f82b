"""Answers before they leave: the request's id, one shape of errors, and one line in the log."""

from __future__ import annotations

import json
import logging
import time
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import URL, MutableHeaders
from starlette.types import Message, Scope, Send

from cache_dit_serving.api.answering import JSON, REQUEST_ID_HEADER, TRACE_ID_HEADER
from cache_dit_serving.api.body import drop_rest
from cache_dit_serving.api.http_metrics import observe_response
from cache_dit_serving.api.incoming import Incoming
from cache_dit_serving.api.matching import allowed_methods
from cache_dit_serving.api.operation import Operation
from cache_dit_serving.api.request_state import state_of
from cache_dit_serving.api.routes import OPENAI_BASE
from cache_dit_serving.errors import (
    ClientGone,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    NotReady,
    RangeNotSatisfiable,
    ServingError,
    UnsupportedMediaType,
)
from cache_dit_serving.tracing import current, finished_span

logger = logging.getLogger(__name__)

USUAL_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


class Outgoing:
    """Passes an answer through; one that is an error is held back and sent in the contract's shape."""

    def __init__(
        self, send: Send, scope: Scope, incoming: Incoming, route: str, trace_id: str, *, drain_bytes: int
    ) -> None:
        self._send = send
        self._route = route
        self._scope = scope
        self._request_id = state_of(scope).id
        self._ids = {REQUEST_ID_HEADER: self._request_id, **({TRACE_ID_HEADER: trace_id} if trace_id else {})}
        self._incoming = incoming
        self._drain_bytes = drain_bytes
        self._error_start: Message | None = None
        self._error_body = b""
        self._code = ""
        self.begun = False
        self.failed = False
        """True if an exception ended it."""
        self._complete = False
        self._status = 0
        self._since = time.perf_counter()
        self._sending: float | None = None
        """Time at which the answer began, seconds since the epoch."""

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            if self._status >= 400:
                self._error_start = message
                return
            headers = MutableHeaders(scope=message)
            headers.update(self._ids)
            if 300 <= self._status < 400 and "location" in headers:
                headers["location"] = _relative(headers["location"], URL(scope=self._scope).netloc)
        elif message["type"] == "http.response.body" and self._error_start is not None:
            self._error_body += message.get("body", b"")
            if not message.get("more_body", False):
                await self._send_error(self._error_start)
            return
        self.begun = True
        self._sending = self._sending or time.time()
        await self._send(message)
        self._complete = message["type"] == "http.response.body" and not message.get("more_body", False)

    async def _send_error(self, start: Message) -> None:
        body = _contract_body(start["status"], self._error_body, self._request_id)
        checked = state_of(self._scope).body
        if checked is not None:  # None where the body was refused, which names its fields so already
            body["error"] = checked.sent_as.error(body["error"])
        self._code = body["error"]["code"]
        content = json.dumps(body, ensure_ascii=False).encode()
        headers = MutableHeaders(raw=list(start.get("headers", [])))
        headers["content-type"] = JSON
        headers["content-length"] = str(len(content))
        headers.update(self._ids)
        if start["status"] == 405:
            headers["allow"] = ", ".join(allowed_methods(self._scope["path"]))
        if self._scope["path"].startswith(f"{OPENAI_BASE}/"):
            # OpenAI's SDK would try 409s and 5xxs again by itself, whether that helps or not.
            headers["x-should-retry"] = str(start["status"] == 408 or "retry-after" in headers).lower()
        unread = not self._incoming.complete and start["status"] != 408
        if unread or self._code == "draining":
            headers["connection"] = "close"
        self.begun = True
        await self._send({**start, "headers": headers.raw})
        await self._send({"type": "http.response.body", "body": content, "more_body": unread})
        if unread:
            await drop_rest(self._incoming, max_bytes=self._drain_bytes)
            await self._send({"type": "http.response.body", "body": b""})
        self._complete = True

    def log(self) -> None:
        """Write the request's line, found by the id that the caller has. It holds nothing that the caller sent."""
        route, seconds = self._route, time.perf_counter() - self._since
        method = self._scope["method"] if self._scope["method"] in USUAL_METHODS else "OTHER"
        # Without an answer the server's HTTP library sends 500, or the client has gone.
        status = self._status or (500 if self.failed else ClientGone.status)
        observe_response(route, status, seconds)
        if (within := current()) is not None and self._sending is not None:
            finished_span("send", within, self._sending, time.time() - self._sending)
        logger.log(
            _level(state_of(self._scope).operation, status),
            "%s %s answered %d%s in %.3f s%s",
            method,
            route,
            status,
            f" {self._code}" if self._code else "",
            seconds,
            "" if self._complete else ", broken off",
            extra={"route": route, "status": status, "seconds": round(seconds, 6)},
        )


def _level(operation: Operation | None, status: int) -> int:
    """Return the log level of a request's line."""
    if status == 500:
        return logging.ERROR
    return logging.DEBUG if operation is not None and status in operation.routine else logging.INFO


def _relative(location: str, here: str) -> str:
    """Return a redirect's target, without scheme and host if they are `here`, the client's name for this server."""
    parts = urlsplit(location)
    return parts._replace(scheme="", netloc="").geturl() if parts.netloc == here else location


def _contract_body(status: int, body: bytes, request_id: str) -> dict[str, Any]:
    """Return an error answer of any origin in the contract's shape."""
    try:
        content = json.loads(body)
    except ValueError:
        content = None
    if isinstance(content, dict):
        error = content.get("error")
        if isinstance(error, dict) and "message" in error:
            return content
    return _error_for(status).body(request_id)


def _error_for(status: int) -> ServingError:
    """Return the error for a status that came without a body of ours."""
    if status == 404:
        return NotFound("there is no such route; GET /docs lists them")
    if status == 405:
        return MethodNotAllowed("this route does not take this method; GET /docs lists those it takes")
    if status == 415:
        return UnsupportedMediaType("the body's type is not one this route takes; send application/json")
    if status == 416:
        return RangeNotSatisfiable("the header Range asks for nothing that this file has")
    if status == 503:
        return NotReady("the server cannot answer now; GET /health says why")
    if status >= 500:
        return InternalError()
    return InvalidRequest("the request could not be read")
