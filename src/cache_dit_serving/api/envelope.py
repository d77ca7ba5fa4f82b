"""Outermost layer: request ids, checked bodies, and one shape for every error, BentoML's own included."""

from __future__ import annotations

import json
import logging
import re
import uuid
from dataclasses import replace

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Receive, Scope, Send

from cache_dit_serving.api.access import Access
from cache_dit_serving.api.answering import JSON, REQUEST_ID_HEADER, error_response
from cache_dit_serving.api.bentoml_stack import adjust_bentoml_stack, current_trace_id
from cache_dit_serving.api.body import CheckedBody, check_body, read_body, replayed, too_large
from cache_dit_serving.api.form import FORM, read_form
from cache_dit_serving.api.incoming import Incoming
from cache_dit_serving.api.matching import Match, match, matched, route_of
from cache_dit_serving.api.operation import UNSUPPORTED_FIELDS_HEADER, JsonBody, Operation
from cache_dit_serving.api.origin import check_framing, check_host, check_site
from cache_dit_serving.api.outgoing import Outgoing
from cache_dit_serving.api.request_state import RequestState, state_of
from cache_dit_serving.api.uvicorn_protocol import refuse_broken_framing_once
from cache_dit_serving.config.settings import Limits, ServerSettings
from cache_dit_serving.engine.caller import Caller
from cache_dit_serving.engine.sent_as import SentAs
from cache_dit_serving.errors import InvalidRequest, ServingError, UnsupportedMediaType
from cache_dit_serving.findings import cut
from cache_dit_serving.logs import note
from cache_dit_serving.tracing import describe_request, span

logger = logging.getLogger(__name__)

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


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
            refuse_broken_framing_once()
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
        trace_id = current_trace_id()
        note(request_id=request_id, trace_id=trace_id, route=route)
        describe_request(f"{scope['method']} {route}", request_id=request_id)
        incoming = Incoming(receive, Headers(scope=scope))
        self._name_proxy(scope, incoming.headers)
        answer = Outgoing(send, scope, incoming, route, trace_id, drain_bytes=self.limits.max_body_bytes)
        try:
            with span("parse"):
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

    async def _checked(self, scope: Scope, incoming: Incoming) -> tuple[Scope, Receive]:
        """Return the request as its row of the table has it, with its body read and without fault.

        Raises:
            ServingError: path, headers or body are refused.
        """
        found = match(scope["method"], scope["path"])
        operation = found.operation if isinstance(found, Match) else None
        state = replace(state_of(scope), operation=operation)
        state.put_into(scope)  # for the log, whether it is refused or not
        caller = await self._admitted(scope, incoming.headers, operation)
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

    async def _admitted(self, scope: Scope, headers: Headers, operation: Operation | None) -> Caller:
        """Return the sender of a request, which may send it.

        Raises:
            ServingError: headers contradict each other, or host, key or the sender's site are refused.
        """
        check_framing(headers)
        if operation is None or not operation.any_host:
            check_host(headers, self.server.allowed_hosts)
        caller = await self.access.admit(headers, operation)
        note(caller=caller.name)
        if not self.access.guarded:
            # A key is sent by a page of this server alone: browsers add none by themselves.
            check_site(scope["method"], headers, self.server.cors_origins)
        return caller

    async def _body(
        self, incoming: Incoming, headers: MutableHeaders, policy: JsonBody, *, lenient: bool
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
        """Log once that a proxy which speaks TLS is not trusted: URLs in answers would begin with http."""
        untrusted = headers.get("x-forwarded-proto") == "https" and scope["scheme"] == "http"
        if untrusted and not self._proxy_named:
            self._proxy_named = True
            logger.warning(
                "%s sends X-Forwarded-Proto and is no proxy of server.trusted_proxies: URLs in answers begin with http",
                (scope.get("client") or ("a client",))[0],
            )

    def _mode(self, headers: Headers) -> str:
        """Return `refuse` or `warn` for fields that the model cannot honour: the request's header, else the setting."""
        mode = headers.get(UNSUPPORTED_FIELDS_HEADER, self.server.unsupported_fields)
        if mode not in ("refuse", "warn"):
            raise InvalidRequest(f"the header {UNSUPPORTED_FIELDS_HEADER} is {cut(mode)!r}; send refuse or warn")
        return mode


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
