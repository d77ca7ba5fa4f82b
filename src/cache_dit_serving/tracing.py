"""Spans of a request's stages, for OpenTelemetry.

Without an address to export to there are none: each function of this module then returns at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from opentelemetry import trace
from opentelemetry.context import Context, get_current
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, TracerProvider

from cache_dit_serving.errors import ServingError

Value = str | int | float | bool

TRACER = "cache_dit_serving"


@dataclass
class _Export:
    tracer: trace.Tracer | None = None


_export = _Export()


def export_spans(provider: TracerProvider) -> None:
    """Make spans by a provider from now on."""
    _export.tracer = provider.get_tracer(TRACER)


def current() -> Context | None:
    """Return the context in which a request's later spans are made; None where it has none."""
    return get_current() if _traced() else None


def describe_request(name: str, **attributes: Value) -> None:
    """Name the span of a request, and add attributes to it."""
    if _traced():
        request = trace.get_current_span()
        request.update_name(name)
        request.set_attributes(attributes)


@contextmanager
def span(name: str, **attributes: Value) -> Iterator[None]:
    """Context manager that makes a span of its body, within the current one. An error of ours sets its code."""
    if _export.tracer is None or not _traced():
        yield
        return
    with _export.tracer.start_as_current_span(
        name, attributes=attributes, record_exception=False, set_status_on_exception=False
    ) as made:
        try:
            yield
        except ServingError as error:
            _fail(made, error.code)
            raise
        except Exception:
            _fail(made, "internal_error")
            raise


def finished_span(
    name: str,
    within: Context,
    began: float,
    seconds: float,
    *,
    attributes: Mapping[str, Value] | None = None,
    error: str | None = None,
) -> Context:
    """Make a span of what is over.

    Args:
        within: context of the span that this one is a part of.
        began: seconds since the epoch.
        error: code of the error that ended it.

    Returns:
        The context for spans within this one.
    """
    assert _export.tracer is not None, "spans need a tracer"
    made = _export.tracer.start_span(name, within, SpanKind.INTERNAL, attributes, start_time=_nanoseconds(began))
    if error is not None:
        _fail(made, error)
    made.end(_nanoseconds(began + seconds))
    return trace.set_span_in_context(made, within)


def _traced() -> bool:
    """Return whether the current request has a span: there is an address to send it to, and its route is traced."""
    return _export.tracer is not None and trace.get_current_span().get_span_context().is_valid


def _fail(made: Span, code: str) -> None:
    made.set_status(Status(StatusCode.ERROR))
    made.set_attribute("error.type", code)


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
