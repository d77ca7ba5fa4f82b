"""`python -m cache_dit_serving.serve`: the launcher for people who come from `python -m cache_dit.serve.serve`."""

from __future__ import annotations

from cache_dit_serving.cli.serve import main

if __name__ == "__main__":
    main()
