"""Waiting for what a test cannot be told of."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

LOOK_S = 0.01
"""Between two looks."""
ASK_S = 0.2
"""Between two questions to a server whose answer takes it milliseconds."""


def wait_until(
    condition: Callable[[], T],
    within_s: float = 60,
    state: Callable[[], object] = lambda: "not met",
    look_s: float = LOOK_S,
) -> T:
    """Return the first true value that a condition gives.

    Args:
        state: what the failure says, asked for when the time is over.
        look_s: seconds between two looks.

    Raises:
        AssertionError: there was none within so many seconds.
    """
    end = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < end, f"waited for {within_s:g} s: {state()}"
        time.sleep(look_s)
    return found
