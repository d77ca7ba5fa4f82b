"""Preload of the fork server from which this machine's ranks are forked: imports everything that a rank imports."""

from __future__ import annotations

import signal

from cache_dit_serving.logs import configure_logs, configured_format
from cache_dit_serving.pipeline.environment import quiet_libraries

# BentoML's supervisor ends its worker's children too. Without this process torch's agent cannot tell how a rank ended,
# and the ranks wait for the agent. It ends with the process that started it.
signal.signal(signal.SIGTERM, signal.SIG_IGN)

configure_logs("INFO", configured_format(), "ranks")
quiet_libraries()

import cache_dit_serving.ranks.rank  # noqa: E402, F401 (reads the environment that the lines above set)
