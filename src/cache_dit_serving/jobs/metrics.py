"""What `/metrics` says beyond BentoML's own. The page docs/metrics.md explains each."""

from __future__ import annotations

from prometheus_client import Counter

PIPELINE_BUSY_SECONDS = Counter(
    "cache_dit_serving_pipeline_busy_seconds",
    "Seconds that the pipeline's thread spent on generations; its rate is the pipeline's utilisation.",
)
