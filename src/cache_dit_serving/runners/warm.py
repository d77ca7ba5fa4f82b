"""Preload of the fork server from which this machine's ranks are forked: imports everything that a rank imports."""

from __future__ import annotations

from cache_dit_serving.logs import configure_logs, configured_format
from cache_dit_serving.pipeline.environment import quiet_libraries

configure_logs("INFO", configured_format(), "ranks")
quiet_libraries()

import cache_dit_serving.runners.rank  # noqa: E402, F401 (reads the environment that the lines above set)
