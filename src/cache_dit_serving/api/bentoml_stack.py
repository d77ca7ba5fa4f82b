"""Changes to the middleware that BentoML 1.4.39 puts around every request, which no setting makes."""

from __future__ import annotations

from typing import Any

from bentoml._internal.context import trace_context
from bentoml._internal.server.http.access import AccessLogMiddleware
from bentoml._internal.server.http.instruments import RunnerTrafficMetricsMiddleware
from bentoml._internal.server.http.traffic import TimeoutMiddleware
from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware
from starlette.applications import Starlette
from starlette.types import ASGIApp, Receive, Scope, Send

from cache_dit_serving.api.matching import route_of
from cache_dit_serving.api.routes import METRICS

REAL_PATH = "cache_dit_serving.path"
"""Key of a scope that holds the path while `path` holds the route."""


def adjust_bentoml_stack(app: Starlette) -> None:
    """Change the chain of middleware around `app`, once it is built.

    - TimeoutMiddleware goes: it keeps a timer of every request, with all that the request's context holds (5 KB and
      more), until the time-out is over, not until the answer is out. `limits.max_request_s` does its work.
    - The metrics are given the route in place of the path. Each path that clients make up would be a label of its own,
      which fills the memory and `/metrics`.
    - `/metrics` goes: it answers one version of the format, whichever a scraper asks for. The table has a row in its
      place.
    - OpenTelemetryMiddleware makes one span of a request, not one more of each part of its body and of its answer.
    - AccessLogMiddleware goes: :class:`envelope.Envelope` writes one line for each request, with its id.
    """
    app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", "") != METRICS]
    layer: Any = app.middleware_stack
    while inner := getattr(layer, "app", None):
        if isinstance(inner, (TimeoutMiddleware, AccessLogMiddleware)):
            layer.app = inner.app
            continue
        if isinstance(inner, OpenTelemetryMiddleware):
            inner.exclude_receive_span = inner.exclude_send_span = True
        if isinstance(inner, RunnerTrafficMetricsMiddleware):
            layer.app = _ByRoute(inner)
            inner.app = _ByPath(inner.app)
        layer = inner


def current_trace_id() -> str:
    """Return the id of this request's trace, 32 hexadecimal digits; empty without a trace."""
    trace_id = trace_context.trace_id
    return format(trace_id, "032x") if trace_id else ""


class _ByRoute:
    """Gives the layer below a request's route as its path."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if "path" in scope:
            scope = {**scope, "path": route_of(scope["path"]), REAL_PATH: scope["path"]}
        await self.app(scope, receive, send)


class _ByPath:
    """Gives the layer below its path back."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if REAL_PATH in scope:
            scope = {**scope, "path": scope[REAL_PATH]}
        await self.app(scope, receive, send)
