"""The process of one rank: `python -m cache_dit_serving.runners`. Its log has one format before torch is imported."""

from __future__ import annotations

import os

from cache_dit_serving.logs import configure_logs, configured_format
from cache_dit_serving.pipeline.environment import quiet_libraries

if __name__ == "__main__":
    configure_logs("INFO", configured_format(), f"rank-{os.environ['RANK']}")
    quiet_libraries()
    from cache_dit_serving.runners.rank import main

    main()
