"""Error for a file that claims too many parts."""

from __future__ import annotations


class Excessive(Exception):
    """More parts than a file of this format needs. The text completes a sentence that begins with the field's name."""


def at_most(limit: int, count: int, what: str) -> None:
    """Check a count.

    Args:
        what: plural noun for the counted parts.

    Raises:
        Excessive: `count` exceeds `limit`.
    """
    if count > limit:
        raise Excessive(f"holds more than {limit:,} {what}")
