"""cache-dit's way to give memory back to the device as it quantises and spreads a model, without its waits."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from cache_dit import utils


def free_without_sleeping() -> None:
    """Have cache-dit give memory back at once, in this process, for good.

    cache-dit 1.5.3 sleeps for a second before it empties the device's cache, and empties it twice, after each component
    that it quantises or spreads. Nothing happens meanwhile: torch's allocator gives back what is free by then.
    """
    module: Any = utils
    module.time = SimpleNamespace(sleep=lambda seconds: None)
