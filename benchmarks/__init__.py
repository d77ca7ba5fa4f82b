"""Benchmarks: `make bench`."""

import os

# Before cache-dit is imported, which reads its log level only then.
os.environ.setdefault("CACHE_DIT_LOG_LEVEL", "warning")
