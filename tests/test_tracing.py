"""Spans of stages: none without an address, and within a request's span alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from cache_dit_serving import tracing
from cache_dit_serving.api.telemetry import tracing_options
from cache_dit_serving.config.settings import ServerSettings
from cache_dit_serving.errors import InvalidRequest


@pytest.fixture
def exported(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    monkeypatch.setattr(tracing, "_export", tracing._Export())
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing.export_spans(provider)
    with provider.get_tracer("test").start_as_current_span("request"):
        yield exporter


def names(spans: tuple[ReadableSpan, ...]) -> list[str]:
    return [span.name for span in spans]


def test_a_failed_stage_has_the_code_of_its_error_and_not_its_text(exported: InMemorySpanExporter) -> None:
    with pytest.raises(InvalidRequest), tracing.span("parse"):
        raise InvalidRequest("the prompt is secret")
    [span] = exported.get_finished_spans()
    assert (span.attributes, span.events) == ({"error.type": "invalid_value"}, ())
    assert not span.status.is_ok
    assert "secret" not in span.to_json()


def test_a_stage_that_is_over_is_within_the_request(exported: InMemorySpanExporter) -> None:
    within = tracing.current()
    assert within is not None
    outer = tracing.finished_span("denoise", within, 10.0, 2.0)
    tracing.finished_span("step", outer, 10.5, 0.5, attributes={"cached": True}, error="stopped")
    denoise, step = exported.get_finished_spans()
    assert (denoise.start_time, denoise.end_time) == (10_000_000_000, 12_000_000_000)
    assert step.parent is not None
    assert step.parent.span_id == denoise.context.span_id
    assert dict(step.attributes or {}) == {"cached": True, "error.type": "stopped"}


def test_nothing_is_made_outside_a_request(exported: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "_export", tracing._Export())
    assert tracing.current() is None
    with tracing.span("parse"):
        tracing.describe_request("POST /generate", request_id="mine")
    assert exported.get_finished_spans() == ()


@pytest.mark.parametrize(
    ("endpoint", "sent_to"),
    [
        ("http://otel:4318", "http://otel:4318/v1/traces"),
        ("http://otel:4318/", "http://otel:4318/v1/traces"),
        ("https://otel.example/otlp/v1/traces", "https://otel.example/otlp/v1/traces"),
    ],
)
def test_an_address_without_a_path_gets_that_of_traces(endpoint: str, sent_to: str) -> None:
    options = tracing_options(ServerSettings(otlp_endpoint=endpoint, trace_sample_rate=0.25))
    assert (options["otlp"]["endpoint"], options["sample_rate"]) == (sent_to, 0.25)


def test_the_environment_has_an_address_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tracing_options(ServerSettings()) == {}
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://otel:4318/v1/traces")
    assert tracing_options(ServerSettings())["otlp"]["endpoint"] is None, "the exporter reads it"
