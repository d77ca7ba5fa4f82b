"""The outermost layer: request ids, the cap on bodies, and one shape for every error, BentoML's own included."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import uuid
from collections.abc import Awaitable, Callable, Mapping
from functools import wraps
from typing import Any, TypeVar

import bentoml
from bentoml._internal.server.http.traffic import TimeoutMiddleware
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cache_dit_serving.errors import (
    BodyTooLarge,
    BodyTooSlow,
    ClientGone,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    NotFound,
    NotReady,
    ServingError,
    UnsupportedMediaType,
    path_of,
)

logger = logging.getLogger(__name__)

REQUEST_ID_HEADER = "X-Request-ID"
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
# Pydantic's kinds of finding, in the caller's words where its own are not.
FINDINGS = {
    "extra_forbidden": "is not a field of this request; remove it",
    "missing": "is missing; it is required",
    "json_invalid": "the body is not valid JSON",
}

R = TypeVar("R")


class Envelope:
    """ASGI middleware around the whole service."""

    def __init__(self, app: ASGIApp, *, max_body_bytes: int, max_body_s: float) -> None:
        self.app = app
        self.max_body_bytes = max_body_bytes
        self.max_body_s = max_body_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                drop_bentoml_timeout(scope["app"])
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        asked = headers.get(REQUEST_ID_HEADER, "")
        request_id = asked if REQUEST_ID.fullmatch(asked) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        answer = _Answer(send, request_id)
        try:
            self._check_headers(headers, scope["method"])
            await self.app(scope, self._counted(receive, answer), answer.send)
        except ServingError as error:
            if answer.begun:
                raise
            await error_response(error, request_id)(scope, receive, send)
        finally:
            if answer.status == 500:
                # The line that leads from a caller's request id to the traceback beside it.
                logger.error("%s %s %s answered %d", request_id, scope["method"], scope["path"], answer.status)

    def _check_headers(self, headers: Headers, method: str) -> None:
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > self.max_body_bytes:
            raise self._too_large()
        has_body = length != "0" or "transfer-encoding" in headers
        media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        if method == "POST" and has_body and media_type != "application/json":
            # BentoML 1.4 would ignore such a body and run on defaults.
            raise UnsupportedMediaType(
                f"the body is {media_type or 'of no stated type'}; send JSON with Content-Type: application/json"
            )

    def _counted(self, receive: Receive, answer: _Answer) -> Receive:
        received, complete = 0, False
        end = asyncio.get_running_loop().time() + self.max_body_s

        async def counted() -> Message:
            nonlocal received, complete
            if complete:
                return await receive()
            # BentoML catches whatever its endpoint raises and answers 500: `instead` is what must be said.
            try:
                async with asyncio.timeout_at(end):
                    message = await receive()
            except TimeoutError:
                answer.instead = BodyTooSlow(f"the body was not there after {self.max_body_s:g} s; send it at once")
                raise answer.instead from None
            if message["type"] == "http.disconnect":
                answer.instead = ClientGone("the client closed the connection before its request was there")
            received += len(message.get("body", b""))
            if received > self.max_body_bytes:
                answer.instead = self._too_large()
                raise answer.instead
            complete = not message.get("more_body", False)
            return message

        return counted

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"the body is larger than the {self.max_body_bytes:,} bytes this server takes")


class _Answer:
    """Passes an answer through; one that is an error is held back and sent in the contract's shape."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self._error_start: Message | None = None
        self._error_body = b""
        self.begun = False
        self.status = 200
        self.instead: ServingError | None = None
        """Said in place of whatever error comes."""

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self.status >= 400:
                self._error_start = message
                return
            MutableHeaders(scope=message)[REQUEST_ID_HEADER] = self._request_id
        elif message["type"] == "http.response.body" and self._error_start is not None:
            self._error_body += message.get("body", b"")
            if not message.get("more_body", False):
                await self._send_error(self._error_start)
            return
        self.begun = True
        await self._send(message)

    async def _send_error(self, start: Message) -> None:
        if self.instead is not None:
            start, body = {**start, "status": self.instead.status}, self.instead.body(self._request_id)
        else:
            body = _contract_body(start["status"], self._error_body, self._request_id)
        content = json.dumps(body, ensure_ascii=False).encode()
        self.status = start["status"]
        headers = MutableHeaders(raw=list(start.get("headers", [])))
        headers["content-type"] = "application/json"
        headers["content-length"] = str(len(content))
        headers[REQUEST_ID_HEADER] = self._request_id
        self.begun = True
        await self._send({**start, "headers": headers.raw})
        await self._send({"type": "http.response.body", "body": content})


def drop_bentoml_timeout(app: Starlette) -> None:
    """Take BentoML's TimeoutMiddleware out of the chain around `app`; `limits.max_request_s` does its work.

    BentoML 1.4.39 keeps a timer of every request, with all that the request's context holds (5 KB and more), until the
    time-out is over, not until the answer is out; and it cannot be configured away.
    """
    layer: Any = app.middleware_stack
    while inner := getattr(layer, "app", None):
        if isinstance(inner, TimeoutMiddleware):
            layer.app = inner.app
        layer = inner


def answers_errors(method: Callable[..., Awaitable[R]]) -> Callable[..., Awaitable[R | JSONResponse]]:
    """For a `@bentoml.api` method: answer a ServingError as the contract has it.

    BentoML 1.4 would wrap a 4xx into an array and mask a 5xx, and it takes status and headers from the context.
    """

    @wraps(method)
    async def answering(self: object, ctx: bentoml.Context, **fields: object) -> R | JSONResponse:
        try:
            return await method(self, ctx, **fields)
        except ServingError as error:
            ctx.response.status_code = error.status
            ctx.response.headers.update(error.headers)
            return error_response(error, request_id_of(ctx.request.scope))

    return answering


def request_id_of(scope: Scope) -> str:
    """The id of a request that came through :class:`Envelope`."""
    return str(scope.get("state", {}).get("request_id", ""))


def error_response(error: ServingError, request_id: str) -> JSONResponse:
    return JSONResponse(
        error.body(request_id), status_code=error.status, headers={**error.headers, REQUEST_ID_HEADER: request_id}
    )


def _contract_body(status: int, body: bytes, request_id: str) -> dict[str, Any]:
    """An error answer of whatever origin in the contract's shape."""
    try:
        content = json.loads(body)
    except ValueError:
        content = None
    if isinstance(content, dict):
        error = content.get("error")
        if isinstance(error, dict) and "message" in error:
            return content
        if status == 400 and isinstance(content.get("detail"), list):
            return _validation_error(content["detail"]).body(request_id)
    return _error_for(status).body(request_id)


def _validation_error(findings: list[Mapping[str, Any]]) -> InvalidRequest:
    """Pydantic's findings as one error: every one in the message, the first one's field as `param`."""
    sentences, fields = [], []
    for finding in findings:
        field = ".".join(path_of(finding.get("loc", ())))
        message = FINDINGS.get(finding["type"]) or _sentence(finding["msg"])
        if finding["type"] == "json_invalid":
            field = ""
            message += f" ({finding['msg'].removeprefix('Invalid JSON: ')})"
        fields.append(field)
        sentences.append(f"{field}: {message}" if field else message)
    code = "invalid_json" if findings[0]["type"] == "json_invalid" else "invalid_value"
    return InvalidRequest("; ".join(sentences), param=fields[0] or None, code=code)


def _sentence(text: str) -> str:
    return text.removeprefix("Value error, ").replace("Input should", "should")


def _error_for(status: int) -> ServingError:
    """The error for a status that came without a body of ours."""
    if status == 404:
        return NotFound("there is no such route; GET /docs lists them")
    if status == 405:
        return MethodNotAllowed("this route does not take this method; GET /docs lists those it takes")
    if status == 415:
        return UnsupportedMediaType("the body's type is not one this route takes; send application/json")
    if status == 503:
        return NotReady("the server cannot answer now; GET /health says why")
    if status >= 500:
        return InternalError()
    return InvalidRequest("the request could not be read")
