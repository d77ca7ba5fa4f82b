"""Metrics of HTTP requests, by route and status: a bounded number of series for any paths."""

from __future__ import annotations

from cache_dit_serving.api.matching import UNKNOWN_ROUTE
from cache_dit_serving.api.routes import OPERATIONS
from cache_dit_serving.jobs import metrics


def start_http_series() -> None:
    """Create a series for each route and each of its statuses: a rate needs a value before the first."""
    for operation in OPERATIONS:
        for status in (operation.status, *operation.also, *(error.status for error in operation.all_errors)):
            metrics.HTTP_RESPONSES.labels(operation.route, str(status))
        metrics.REQUEST_SECONDS.labels(operation.route)
    for status in (400, 404):
        metrics.HTTP_RESPONSES.labels(UNKNOWN_ROUTE, str(status))
    metrics.REQUEST_SECONDS.labels(UNKNOWN_ROUTE)


def observe_response(route: str, status: int, seconds: float) -> None:
    """Count one answer, and the time from its request to its last byte."""
    metrics.HTTP_RESPONSES.labels(route, str(status)).inc()
    metrics.REQUEST_SECONDS.labels(route).observe(seconds)
