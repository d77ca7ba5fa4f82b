"""The outermost layer: request ids, checked bodies, and one shape for every error, BentoML's own included."""

from __future__ import annotations

import json
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import wraps
from typing import Any, TypeVar
from urllib.parse import urlsplit

import bentoml
from pydantic import ValidationError
from starlette.datastructures import URL, Headers, MutableHeaders
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cache_dit_serving.api.access import Access
from cache_dit_serving.api.answering import JSON, REQUEST_ID_HEADER, error_response
from cache_dit_serving.api.bentoml_stack import adjust_bentoml_stack, current_trace_id
from cache_dit_serving.api.body import CheckedBody, check_body, drop_rest, read_body, replayed, too_large
from cache_dit_serving.api.form import FORM, read_form
from cache_dit_serving.api.http_metrics import observe_response
from cache_dit_serving.api.matching import Match, allowed_methods, match, matched, route_of
from cache_dit_serving.api.operation import UNSUPPORTED_FIELDS_HEADER, JsonBody, Operation
from cache_dit_serving.api.origin import check_framing, check_host, check_site
from cache_dit_serving.api.request_state import RequestState, state_of
from cache_dit_serving.api.routes import OPENAI_BASE
from cache_dit_serving.config.settings import Limits, ServerSettings
from cache_dit_serving.engine.caller import Caller
from cache_dit_serving.engine.sent_as import SentAs
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
from cache_dit_serving.findings import cut
from cache_dit_serving.logs import note

logger = logging.getLogger(__name__)

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
USUAL_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")

R = TypeVar("R")


class Envelope:
    """ASGI middleware around the whole service."""

    def __init__(self, app: ASGIApp, *, limits: Limits, server: ServerSettings, access: Access) -> None:
        self.app = app
        self.access = access
        self.limits = limits
        self.server = server
        self._proxy_named = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            adjust_bentoml_stack(scope["app"])
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            # No route speaks WebSocket: closed before it is accepted, which the client sees as 403.
            await send({"type": "websocket.close"})
            return
        asked = Headers(scope=scope).get(REQUEST_ID_HEADER, "")
        request_id = asked if REQUEST_ID.fullmatch(asked) else uuid.uuid4().hex
        RequestState(request_id).put_into(scope)
        # Each request has a task, and so a context, of its own.
        route = route_of(scope["path"])
        note(request_id=request_id, trace_id=current_trace_id(), route=route)
        incoming = _Incoming(receive, Headers(scope=scope))
        self._name_proxy(scope, incoming.headers)
        answer = _Answer(send, scope, incoming, route, drain_bytes=self.limits.max_body_bytes)
        try:
            scope, receive = await self._checked(scope, incoming)
            await self.app(scope, receive, answer.send)
        except ServingError as error:
            if answer.begun:
                raise
            await error_response(error, request_id)(scope, receive, answer.send)
        except Exception:
            answer.failed = True
            raise
        finally:
            answer.log()

    async def _checked(self, scope: Scope, incoming: _Incoming) -> tuple[Scope, Receive]:
        """Return the request as its row of the table has it, with its body read and without fault.

        Raises:
            ServingError: path, headers or body are refused.
        """
        found = match(scope["method"], scope["path"])
        operation = found.operation if isinstance(found, Match) else None
        state = replace(state_of(scope), operation=operation)
        state.put_into(scope)  # for the log, whether it is refused or not
        caller = self._admitted(scope, incoming.headers, operation)
        if not isinstance(found, Match):
            raise found
        reads_mode = found.operation.body is not None or UNSUPPORTED_FIELDS_HEADER in found.operation.headers
        state = replace(state, caller=caller, lenient=reads_mode and self._mode(incoming.headers) == "warn")
        scope = matched(scope, found)
        if (policy := found.operation.body) is None:
            state.put_into(scope)
            return scope, incoming
        headers = MutableHeaders(raw=list(scope["headers"]))
        body = await self._body(incoming, headers, policy, lenient=state.lenient)
        replace(state, body=body).put_into(scope)
        return {**scope, "headers": headers.raw}, replayed(body.respelt, incoming)

    def _admitted(self, scope: Scope, headers: Headers, operation: Operation | None) -> Caller:
        """Return the sender of a request, which may send it.

        Raises:
            ServingError: headers contradict each other, or host, key or the sender's site are refused.
        """
        check_framing(headers)
        if operation is None or not operation.any_host:
            check_host(headers, self.server.allowed_hosts)
        caller = self.access.admit(headers, operation)
        note(caller=caller.name)
        if not self.access.guarded:
            # A key is sent by a page of this server alone: browsers add none by themselves.
            check_site(scope["method"], headers, self.server.cors_origins)
        return caller

    async def _body(
        self, incoming: _Incoming, headers: MutableHeaders, policy: JsonBody, *, lenient: bool
    ) -> CheckedBody:
        """Return the body; its stated type in `headers` becomes that of its respelt JSON.

        Raises:
            ServingError: it is too large, too slow, of another type, or refused by :mod:`api.body`.
        """
        length, max_bytes = headers.get("content-length", ""), getattr(self.limits, policy.limit)
        if length.isdigit() and int(length) > max_bytes:
            raise too_large(max_bytes)
        if incoming.has_body:
            _check_media_type(headers, form=policy.form is not None)
        sent = await read_body(incoming, max_bytes=max_bytes, max_s=self.limits.max_body_s)
        files: list[bytes] = []
        sent_as = SentAs()
        if policy.form is not None and _media_type(headers) == FORM:
            tree, files, sent_as = await read_form(sent, headers, policy.model, policy.form)
            sent = json.dumps(tree).encode()
            headers["content-type"] = JSON
        checked = await check_body(sent, policy, lenient=lenient, files=files, sent_as=sent_as)
        if not checked.respelt:
            # BentoML 1.4 reads the body by its stated type, and there is none.
            del headers["content-type"]
        return checked

    def _name_proxy(self, scope: Scope, headers: Headers) -> None:
        """Say in the log, once, that a proxy is not trusted which speaks TLS: URLs in answers would begin with http."""
        untrusted = headers.get("x-forwarded-proto") == "https" and scope["scheme"] == "http"
        if untrusted and not self._proxy_named:
            self._proxy_named = True
            logger.warning(
                "%s sends X-Forwarded-Proto and is no proxy of server.trusted_proxies: URLs in answers begin with http",
                (scope.get("client") or ("a client",))[0],
            )

    def _mode(self, headers: Headers) -> str:
        """What becomes of a field that the model cannot honour: as the request has it, or else the operator."""
        mode = headers.get(UNSUPPORTED_FIELDS_HEADER, self.server.unsupported_fields)
        if mode not in ("refuse", "warn"):
            raise InvalidRequest(f"the header {UNSUPPORTED_FIELDS_HEADER} is {cut(mode)!r}; send refuse or warn")
        return mode


class _Incoming:
    """A request's `receive` that remembers whether its body has come to an end."""

    def __init__(self, receive: Receive, headers: Headers) -> None:
        self._receive = receive
        self.headers = headers
        self.has_body = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
        self.complete = not self.has_body

    async def __call__(self) -> Message:
        message = await self._receive()
        self.complete = self.complete or message["type"] == "http.disconnect" or not message.get("more_body", False)
        return message


class _Answer:
    """Passes an answer through; one that is an error is held back and sent in the contract's shape."""

    def __init__(self, send: Send, scope: Scope, incoming: _Incoming, route: str, *, drain_bytes: int) -> None:
        self._send = send
        self._route = route
        self._scope = scope
        self._request_id = state_of(scope).id
        self._incoming = incoming
        self._drain_bytes = drain_bytes
        self._error_start: Message | None = None
        self._error_body = b""
        self._code = ""
        self.begun = False
        self.failed = False
        """Whether an exception ended it."""
        self._complete = False
        self._status = 0
        self._since = time.perf_counter()

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            if self._status >= 400:
                self._error_start = message
                return
            headers = MutableHeaders(scope=message)
            headers[REQUEST_ID_HEADER] = self._request_id
            if 300 <= self._status < 400 and "location" in headers:
                headers["location"] = _relative(headers["location"], URL(scope=self._scope).netloc)
        elif message["type"] == "http.response.body" and self._error_start is not None:
            self._error_body += message.get("body", b"")
            if not message.get("more_body", False):
                await self._send_error(self._error_start)
            return
        self.begun = True
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
        headers[REQUEST_ID_HEADER] = self._request_id
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
        """One line for each request, which leads from a caller's id to its cause; nothing that the caller sent."""
        route, seconds = self._route, time.perf_counter() - self._since
        method = self._scope["method"] if self._scope["method"] in USUAL_METHODS else "OTHER"
        # Without an answer the server's HTTP library sends 500, or the client has gone.
        status = self._status or (500 if self.failed else ClientGone.status)
        observe_response(route, status, seconds)
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


def _media_type(headers: Headers) -> str:
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def _check_media_type(headers: Headers, *, form: bool) -> None:
    media_type = _media_type(headers)
    if media_type != JSON and not (form and media_type == FORM):
        # BentoML 1.4 would ignore such a body and run on defaults.
        raise UnsupportedMediaType(
            f"the body is {cut(media_type) or 'of no stated type'}; send JSON with Content-Type: {JSON}"
            + (f", or a form with Content-Type: {FORM}" if form else "")
        )
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise UnsupportedMediaType(f"the body is encoded as {cut(encoding)}; send it without Content-Encoding")


def _relative(location: str, here: str) -> str:
    """A redirect's target, without scheme and host where they are `here`: what the client calls this server."""
    parts = urlsplit(location)
    return parts._replace(scheme="", netloc="").geturl() if parts.netloc == here else location


def answers_errors(method: Callable[..., Awaitable[R]]) -> Callable[..., Awaitable[R | JSONResponse]]:
    """For a `@bentoml.api` method: answer a ServingError as the contract has it.

    BentoML 1.4 would wrap a 4xx into an array and mask a 5xx, and it takes status and headers from the context.
    """

    @wraps(method)
    async def answering(self: object, ctx: bentoml.Context, **fields: object) -> R | JSONResponse:
        try:
            answer = await method(self, ctx, **fields)
            if isinstance(answer, Response):
                ctx.response.status_code = answer.status_code
            return answer
        except ServingError as error:
            serving_error = error
        except ValidationError:
            # The body has been checked: this is an answer of ours, and BentoML would call it the caller's fault.
            logger.exception("the answer is not valid")
            serving_error = InternalError()
        ctx.response.status_code = serving_error.status
        ctx.response.headers.update(serving_error.headers)
        return error_response(serving_error, state_of(ctx.request.scope).id)

    return answering


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
    return _error_for(status).body(request_id)


def _error_for(status: int) -> ServingError:
    """The error for a status that came without a body of ours."""
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
