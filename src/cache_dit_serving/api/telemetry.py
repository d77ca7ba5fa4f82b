"""OpenTelemetry of BentoML's servers: where their spans, and ours within them, are sent."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import urlsplit

from bentoml._internal.configuration.containers import BentoMLContainer

from cache_dit_serving.api.routes import OPERATIONS
from cache_dit_serving.config.settings import ServerSettings
from cache_dit_serving.tracing import export_spans

VARIABLES = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
"""OpenTelemetry's own environment variables of an address."""
TRACES_PATH = "/v1/traces"


def tracing_options(server: ServerSettings) -> dict[str, Any]:
    """Return `tracing` of BentoML's service: empty where no spans are sent."""
    if not _exports(server):
        return {}
    return {
        "exporter_type": "otlp",
        "sample_rate": server.trace_sample_rate,
        # Probes and scrapers ask every few seconds: their spans would hide the others.
        "excluded_urls": ",".join(f"{row.route}$" for row in OPERATIONS if row.any_host),
        # Without an address the exporter reads the environment's.
        "otlp": {"protocol": "http", "endpoint": _address(server.otlp_endpoint), "http": {}},
    }


def start_spans(server: ServerSettings) -> None:
    """Let this process make spans, where they are sent."""
    if _exports(server):
        export_spans(BentoMLContainer.tracer_provider.get())


def send_last_spans(server: ServerSettings) -> None:
    """Send the spans that wait, seconds at most. A worker's process ends by a signal, without Python's own exit."""
    if _exports(server):
        BentoMLContainer.tracer_provider.get().shutdown()


def _exports(server: ServerSettings) -> bool:
    return server.otlp_endpoint is not None or any(os.environ.get(name) for name in VARIABLES)


def _address(endpoint: str | None) -> str | None:
    """Return the address of a collector's traces. One without a path gets that which OTLP has for them."""
    if endpoint is None or urlsplit(endpoint).path.strip("/"):
        return endpoint
    return endpoint.rstrip("/") + TRACES_PATH
